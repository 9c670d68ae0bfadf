#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "server/chat_request.h"
#include "server/completion_request.h"
#include "server/messages.h"
#include "server/test_service.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

TestService& shared() {
  static TestService service;
  return service;
}

struct Case {
  std::string field{};
  std::vector<std::string> bad{};   // JSON values
  std::vector<std::string> good{};  // likewise
  std::string also{};               // other fields that are needed
};

// Fields of both endpoints.
const std::vector<Case> kCommon = {
    {"temperature", {"-1", "\"1\"", "true", "[]", "{}", "1e308"}, {"0", "0.7", "2", "1e-9"}},
    {"top_p", {"0", "-0.1", "1.1", "\"x\"", "true"}, {"1", "0.001"}},
    {"top_k", {"-2", "1.5", "\"5\"", "99999999999"}, {"-1", "0", "50", "50.0"}},
    {"min_p", {"-0.1", "1.1", "[]"}, {"0", "1"}},
    {"repetition_penalty", {"0", "-1", "1000", "\"a\""}, {"1.0", "1.3"}},
    {"presence_penalty", {"-2.1", "2.1", "true"}, {"-2", "2"}},
    {"frequency_penalty", {"-2.1", "2.1", "{}"}, {"-2", "2"}},
    {"seed", {"1.5", "\"1\"", "true", "1e30", "18446744073709551615"}, {"0", "-5", "42"}},
    {"n", {"0", "-1", "65", "1.5", "\"2\"", "true", "1000000000000"}, {"1", "3"}},
    {"max_tokens", {"0", "-1", "1.5", "\"9\"", "true", "[]", "1e20"}, {"1", "64", "64.0"}},
    {"min_tokens", {"-1", "\"1\"", "1.5", "10"}, {"0", "3"}, "\"max_tokens\": 5"},
    {"stop",
     {"1", "{}", "[1]", "[\"a\", null]", "\"\"", "[\"\"]", "[\"1\",\"2\",\"3\",\"4\",\"5\"]",
      "true"},
     {"\"x\"", "[]", "[\"a\", \"b\"]"}},
    {"stop_token_ids", {"1", "[-1]", "[\"1\"]", "[9999999]", "[1.5]", "{}"}, {"[]", "[1, 2]"}},
    {"allowed_token_ids", {"[]", "1", "[-1]", "[\"a\"]"}, {"[5, 6]"}},
    {"logit_bias",
     {"[]", "1", "{\"x\": 1}", "{\"-1\": 1}", "{\"9999999\": 1}", "{\"1\": \"a\"}", "{\"1x\": 1}"},
     {"{}", "{\"5\": -100}", "{\"5\": 1e9}"}},
    {"ignore_eos", {"1", "\"true\"", "[]"}, {"true", "false"}},
    {"include_stop_str_in_output", {"1", "\"x\""}, {"true"}},
    {"skip_special_tokens", {"1", "\"x\""}, {"false"}},
    {"spaces_between_special_tokens", {"1"}, {"false"}},
    {"stream", {"1", "\"true\"", "[]"}, {"true", "false"}},
    {"stream_options",
     {"1", "[]", "true"},
     {"{}", "{\"include_usage\": true}"},
     "\"stream\": true"},
    {"return_token_ids", {"1"}, {"true"}},
    {"return_tokens_as_token_ids", {"\"x\""}, {"true"}},
    {"cache_salt", {"1", "\"\"", "\"a@b\"", "\"a/b\"", "\"a\\\\b\"", "\"a\\u0000\""}, {"\"abc\""}},
    {"truncate_prompt_tokens", {"0", "-2", "\"x\"", "1.5"}, {"-1", "3"}},
    {"truncation_side", {"1", "\"middle\""}, {"\"left\"", "\"right\""}},
    {"prompt_logprobs", {"-1", "21", "true", "\"1\""}, {"0", "5"}},
    {"model", {"1", "[]", "true"}, {"\"pocket\"", "\"alias\"", "\"\""}},
    {"user", {"1", "[]"}, {"\"me\""}},
    {"request_id", {"1"}, {"\"id\""}},
    {"add_special_tokens", {"1"}, {"true"}},
    {"response_format",
     {"1", "\"json\"", "{\"type\": \"json_object\"}", "{\"type\": \"structural_tag\"}",
      "{\"type\": \"json_schema\", \"json_schema\": {\"name\": \"x\"}}"},
     {"{\"type\": \"text\"}"}},
    {"structured_outputs", {"{}", "{\"json\": {}}", "1"}, {}},
    {"guided_json", {"{}", "\"{}\""}, {}},
    {"guided_regex", {"\"a\""}, {}},
    {"guided_choice", {"[\"a\"]"}, {}},
    {"guided_grammar", {"\"x\""}, {}},
    {"grammar", {"\"x\""}, {}},
    {"json_schema", {"{}"}, {}},
    {"bad_words", {"[\"x\"]", "1"}, {"[]"}},
    {"logprob_token_ids", {"[1]", "1"}, {"[]"}},
    {"use_beam_search", {"true", "1"}, {"false"}},
    {"length_penalty", {"\"x\""}, {"1.0"}},
    {"priority", {"1", "\"x\""}, {"0"}},
    {"unknown_field", {}, {"1", "{\"a\": []}", "\"x\""}},
    {"kv_transfer_params", {}, {"{\"a\": 1}"}},
};

const std::vector<Case> kChat = {
    {"messages", {"1", "{}", "[]", "\"hi\""}, {}},
    {"max_completion_tokens", {"0", "-1", "\"1\""}, {"7"}},
    {"logprobs", {"1", "\"true\""}, {"true", "false"}},
    {"top_logprobs", {"-2", "21", "\"1\"", "true"}, {"0", "5", "20"}, "\"logprobs\": true"},
    {"tools", {"1", "{}", "[]"}, {}},
    {"tool_choice", {"1", "\"sometimes\"", "\"auto\"", "\"required\""}, {"\"none\""}},
    {"parallel_tool_calls", {"1"}, {"true", "false"}},
    {"reasoning_effort", {"1", "\"huge\""}, {"\"none\"", "\"high\"", "\"max\""}},
    {"include_reasoning", {"1"}, {"false"}},
    {"thinking_token_budget", {"5", "\"x\""}, {"-1"}},
    {"echo", {"true", "1"}, {"false"}},
    {"add_generation_prompt", {"1"}, {"true", "false"}},
    {"continue_final_message", {"true", "1"}, {"false"}},
    {"documents", {"1", "{}"}, {"[]"}},
    {"chat_template", {"\"x\"", "1"}, {}},
    {"chat_template_kwargs",
     {"1", "[]", "{\"messages\": []}", "{\"tools\": 1}", "{\"add_generation_prompt\": false}"},
     {"{}", "{\"enable_thinking\": false}"}},
};

const std::vector<Case> kCompletion = {
    {"prompt",
     {"1", "{}", "[]", "\"\"", "[\"\"]", "[[]]", "[-1]", "[9999999]", "[1.5]", "[\"a\", 1]",
      "[[1, \"a\"]]", "[true]", "[[[1]]]"},
     {"\"x\"", "[\"x\", \"y\"]", "[1, 2]", "[[1], [2, 3]]", "[\"x\", [1]]"}},
    {"logprobs", {"true", "-1", "21", "\"1\""}, {"0", "5"}},
    {"echo", {"1", "\"x\""}, {"true", "false"}},
    {"suffix", {"\"x\"", "1"}, {"\"\""}},
    {"best_of", {"2", "\"1\""}, {"1"}},
    {"prompt_embeds", {"\"x\""}, {}},
};

using Reader = void (*)(const Json&);
void read_chat(const Json& body) {
  GenerationRequest generation = read_chat_request(body, shared().service).generation;
  std::vector<int32_t> prompt{1, 2, 3};
  fit_prompt(prompt, generation, shared().service);
}
void read_completion(const Json& body) {
  read_completion_request(body, shared().service);
}

void check_cases(const std::vector<Case>& cases, const std::string& base, Reader read) {
  for (const Case& c : cases) {
    const auto body = [&](const std::string& value) {
      Json object = Json::parse("{" + base + (c.also.empty() ? "" : ", " + c.also) + "}");
      object[c.field] = Json::parse(value);
      return object;
    };
    for (const std::string& value : c.bad) {
      try {
        read(body(value));
        ADD_FAILURE() << c.field << " accepts " << value;
      } catch (const ApiError& error) {
        EXPECT_EQ(error.status, 400) << c.field << " " << value;
        EXPECT_TRUE(error.param.starts_with(c.field))
            << c.field << " " << value << ": " << error.param;
        EXPECT_NE(std::string(error.what()), "");
      }
    }
    for (const std::string& value : c.good) {
      EXPECT_NO_THROW(read(body(value))) << c.field << " " << value;
    }
    if (c.field != "messages" && c.field != "prompt") {
      EXPECT_NO_THROW(read(body("null"))) << c.field << " null";
    }
  }
}

constexpr const char* kChatBase = R"("messages": [{"role": "user", "content": "hi"}])";
constexpr const char* kCompletionBase = R"("prompt": "hi")";

TEST(Requests, ChecksEveryFieldOfChats) {
  check_cases(kCommon, kChatBase, read_chat);
  check_cases(kChat, kChatBase, read_chat);
}

TEST(Requests, ChecksEveryFieldOfCompletions) {
  check_cases(kCommon, kCompletionBase, read_completion);
  check_cases(kCompletion, kCompletionBase, read_completion);
}

std::string refusal(const std::string& json) {
  try {
    read_chat(Json::parse(json));
    return "";
  } catch (const ApiError& error) {
    return error.param;
  }
}

std::string chat_with(const std::string& fields) {
  return "{" + std::string(kChatBase) + ", " + fields + "}";
}

TEST(Requests, ChecksFieldsAgainstEachOther) {
  EXPECT_EQ(refusal(chat_with(R"("stream_options": {})")), "stream_options");
  EXPECT_EQ(refusal(chat_with(R"("top_logprobs": 2)")), "top_logprobs");
  EXPECT_EQ(refusal(chat_with(R"("min_tokens": 9, "max_tokens": 5)")), "min_tokens");
  EXPECT_EQ(refusal(chat_with(R"("stream": true, "prompt_logprobs": 1)")), "prompt_logprobs");
  EXPECT_EQ(refusal(chat_with(R"("response_format": {"type": "json_schema"})")),
            "response_format.json_schema");
  EXPECT_EQ(refusal(chat_with(R"("response_format": {"type": "xml"})")), "response_format.type");
  const std::string tools = R"("tools": [{"type": "function", "function": {"name": "f"}}])";
  EXPECT_EQ(refusal(chat_with(tools)), "");
  EXPECT_EQ(refusal(chat_with(tools + R"(, "tool_choice": "auto")")), "");
  EXPECT_EQ(refusal(chat_with(tools + R"(, "tool_choice": "required")")), "tool_choice");
  EXPECT_EQ(refusal(chat_with(
                tools + R"(, "tool_choice": {"type": "function", "function": {"name": "f"}})")),
            "tool_choice");
  EXPECT_EQ(refusal(chat_with(tools + R"(, "tool_choice": {})")), "tool_choice.function");
  EXPECT_EQ(refusal(chat_with(R"("tools": [1])")), "tools[0]");
  EXPECT_EQ(refusal(chat_with(R"("tools": [{"type": "web_search"}])")), "tools[0].type");
  EXPECT_EQ(refusal(chat_with(R"("tools": [{"type": "function"}])")), "tools[0].function");
  EXPECT_EQ(refusal(chat_with(R"("tools": [{"function": {"name": 1}}])")),
            "tools[0].function.name");
  EXPECT_EQ(refusal(chat_with(R"("tools": [{"function": {"name": "f", "parameters": []}}])")),
            "tools[0].function.parameters");
}

TEST(Requests, UnknownModelsAreNotFound) {
  try {
    read_chat(Json::parse(chat_with(R"("model": "gpt-4")")));
    FAIL();
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status, 404);
    EXPECT_STREQ(error.what(), "The model `gpt-4` does not exist.");
  }
}

TEST(Requests, SaysHowFarThePromptIsTooLong) {
  const auto overflow = [](int prompt_tokens, int max_tokens) -> std::string {
    std::string ids;
    for (int i = 0; i < prompt_tokens; ++i) ids += (i ? ",7" : "7");
    try {
      read_completion(Json::parse("{\"prompt\": [" + ids +
                                  "], \"max_tokens\": " + std::to_string(max_tokens) + "}"));
      return "";
    } catch (const ApiError& error) {
      EXPECT_EQ(error.code, "context_length_exceeded");
      return error.what();
    }
  };
  EXPECT_EQ(overflow(500, 12), "");
  EXPECT_EQ(overflow(500, 13),
            "This model's maximum context length is 512 tokens. However, you requested 513 tokens "
            "(500 in the messages, 13 in the completion). Please reduce the length of the messages "
            "or completion.");
  EXPECT_NE(overflow(512, 1), "");
  EXPECT_EQ(refusal("{\"messages\": [{\"role\": \"user\", \"content\": \"" +
                    std::string(1 << 20, 'x') + "\"}]}"),
            "");
  EXPECT_THROW(render_chat({.messages = Json::parse("[{\"role\": \"user\", \"content\": \"" +
                                                    std::string(1 << 20, 'x') + "\"}]")},
                           {}, shared().service),
               ApiError);
}

TEST(Requests, DefaultsComeFromTheServer) {
  TestService own({.generation = {.temperature = 0.25f, .top_k = 7, .max_new_tokens = 30}});
  ChatRequest request = read_chat_request(Json::parse(chat_with("\"x\": 1")), own.service);
  EXPECT_EQ(request.generation.sampling.temperature, 0.25f);
  EXPECT_EQ(request.generation.sampling.top_k, 7);
  EXPECT_EQ(output_budget(10, std::nullopt, own.service), 30);
  EXPECT_EQ(output_budget(10, 100, own.service), 30);
  EXPECT_EQ(output_budget(500, std::nullopt, own.service), 12);
  request =
      read_chat_request(Json::parse(chat_with("\"temperature\": 0, \"top_k\": -1")), own.service);
  EXPECT_EQ(request.generation.sampling.temperature, 0);
  EXPECT_EQ(request.generation.sampling.top_k, 0);
}

TEST(Messages, AreNormalized) {
  const Json messages = normalize_messages(Json::parse(R"([
    {"role": "developer", "content": "d"},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, "c"]},
    {"role": "assistant", "content": null, "reasoning": "r", "tool_calls": [
      {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": [1]}"}},
      {"id": "2", "function": {"name": "g", "arguments": ""}},
      {"function": {"name": "h", "arguments": {"y": 2}}},
      {"function": {"name": "i"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "t"},
    {"role": "assistant", "content": "z", "reasoning_content": "s"},
    {"role": "user"}])"));
  EXPECT_EQ(messages[0], Json::parse(R"({"role": "system", "content": "d"})"));
  EXPECT_EQ(messages[1]["content"], "abc");
  EXPECT_EQ(messages[2]["content"], "");
  EXPECT_EQ(messages[2]["reasoning_content"], "r");
  EXPECT_EQ(messages[2]["tool_calls"][0]["function"]["arguments"], Json::parse(R"({"x": [1]})"));
  EXPECT_EQ(messages[2]["tool_calls"][1]["function"]["arguments"], Json::object());
  EXPECT_EQ(messages[2]["tool_calls"][2]["function"]["arguments"], Json::parse(R"({"y": 2})"));
  EXPECT_EQ(messages[2]["tool_calls"][3]["function"]["arguments"], Json::object());
  EXPECT_EQ(messages[3]["tool_call_id"], "1");
  EXPECT_EQ(messages[4]["reasoning_content"], "s");
  EXPECT_EQ(messages[5]["content"], "");
}

TEST(Messages, ErrorsNameThePath) {
  const auto path = [](const std::string& message) -> std::string {
    try {
      normalize_messages(Json::parse("[{\"role\": \"user\"}, " + message + "]"));
      return "";
    } catch (const ApiError& error) {
      EXPECT_EQ(error.status, 400);
      return error.param;
    }
  };
  EXPECT_EQ(path("1"), "messages[1]");
  EXPECT_EQ(path("{}"), "messages[1].role");
  EXPECT_EQ(path(R"({"role": "robot"})"), "messages[1].role");
  EXPECT_EQ(path(R"({"role": 1})"), "messages[1].role");
  EXPECT_EQ(path(R"({"role": "user", "content": 1})"), "messages[1].content");
  EXPECT_EQ(path(R"({"role": "user", "content": {}})"), "messages[1].content");
  EXPECT_EQ(path(R"({"role": "user", "content": [1]})"), "messages[1].content[0]");
  EXPECT_EQ(path(R"({"role": "user", "content": [{"type": "text"}]})"),
            "messages[1].content[0].text");
  EXPECT_EQ(path(R"({"role": "user", "content": [{"type": "image_url", "image_url": {}}]})"),
            "messages[1].content[0].type");
  EXPECT_EQ(path(R"({"role": "assistant", "tool_calls": 1})"), "messages[1].tool_calls");
  EXPECT_EQ(path(R"({"role": "assistant", "tool_calls": [{}]})"),
            "messages[1].tool_calls[0].function");
  const auto call = [&](const std::string& arguments) {
    return path(R"({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": )" +
                arguments + "}}]}");
  };
  EXPECT_EQ(call("\"{\""), "messages[1].tool_calls[0].function.arguments");
  EXPECT_EQ(call("\"[1]\""), "messages[1].tool_calls[0].function.arguments");
  EXPECT_EQ(call("1"), "messages[1].tool_calls[0].function.arguments");
  EXPECT_EQ(call("\"{}\""), "");
}

}  // namespace
}  // namespace nibble
