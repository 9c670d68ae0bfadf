#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "server/test_service.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kChat = "/v1/chat/completions";
constexpr const char* kCompletion = "/v1/completions";
constexpr const char* kHi = R"({"messages": [{"role": "user", "content": "hi"}])";
constexpr const char* kTools =
    R"(, "tools": [{"type": "function", "function": {"name": "get_time", "parameters":
        {"type": "object", "properties": {"city": {"type": "string"}}}}}])";

std::string chat(const std::string& more = "") {
  return std::string(kHi) + more + "}";
}
std::string completion(const std::string& more = "") {
  return R"({"prompt": "one two")" + more + "}";
}

TEST(Chat, AnswersWithReasoningContentAndUsage) {
  TestService service;
  service.say("I think</think>Hello.");
  const Json answer = service.post_json(kChat, chat());
  EXPECT_TRUE(answer["id"].get<std::string>().starts_with("chatcmpl-"));
  EXPECT_EQ(answer["object"], "chat.completion");
  EXPECT_EQ(answer["model"], "pocket");
  EXPECT_EQ(answer["system_fingerprint"], "nibble-1.2.3");
  const Json& choice = answer["choices"][0];
  EXPECT_EQ(choice["index"], 0);
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_TRUE(choice["stop_reason"].is_null());
  EXPECT_TRUE(choice["logprobs"].is_null());
  EXPECT_EQ(choice["message"]["role"], "assistant");
  EXPECT_EQ(choice["message"]["content"], "Hello.");
  EXPECT_EQ(choice["message"]["reasoning"], "I think");
  EXPECT_EQ(choice["message"]["reasoning_content"], "I think");
  EXPECT_FALSE(choice["message"].contains("tool_calls"));
  const Json& usage = answer["usage"];
  const int prompt_tokens = int(service.requests.at(0).prompt.size());
  EXPECT_EQ(usage["prompt_tokens"], prompt_tokens);
  EXPECT_EQ(usage["completion_tokens"], service.script.size() + 1);  // with the stop token
  EXPECT_EQ(usage["total_tokens"], prompt_tokens + int(service.script.size()) + 1);
  EXPECT_EQ(usage["prompt_tokens_details"]["cached_tokens"], 3);
  const int reasoning_tokens = usage["completion_tokens_details"]["reasoning_tokens"];
  EXPECT_GT(reasoning_tokens, 0);
  EXPECT_LT(reasoning_tokens, int(service.script.size()));
  EXPECT_EQ(service.requests[0].sampling.max_tokens, 512 - prompt_tokens);
}

TEST(Chat, ChoosesTheReasoningField) {
  const auto message = [](ReasoningField field, const std::string& more) {
    TestService service({.reasoning_field = field});
    service.say("why</think>Hi");
    return service.post_json(kChat, chat(more))["choices"][0]["message"];
  };
  Json m = message(ReasoningField::kReasoning, "");
  EXPECT_EQ(m["reasoning"], "why");
  EXPECT_FALSE(m.contains("reasoning_content"));
  m = message(ReasoningField::kReasoningContent, "");
  EXPECT_EQ(m["reasoning_content"], "why");
  EXPECT_FALSE(m.contains("reasoning"));
  m = message(ReasoningField::kBoth, R"(, "include_reasoning": false)");
  EXPECT_FALSE(m.contains("reasoning"));
  EXPECT_EQ(m["content"], "Hi");
}

TEST(Chat, StreamsOneChunkAToken) {
  TestService service;
  service.say("why</think>Hello there");
  const std::vector<Json> events = service.post_stream(
      kChat, chat(R"(, "stream": true, "stream_options": {"include_usage": true})"));
  ASSERT_GE(events.size(), 4u);
  const Json& first = events[0]["choices"][0]["delta"];
  EXPECT_EQ(events[0]["object"], "chat.completion.chunk");
  EXPECT_EQ(first["role"], "assistant");
  EXPECT_NE(first.value("reasoning", "") + first["content"].get<std::string>(), "");
  std::string content, reasoning;
  int finishes = 0;
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    const Json& choice = events[i]["choices"].at(0);
    EXPECT_FALSE(events[i].contains("usage"));
    EXPECT_EQ(events[i]["id"], events[0]["id"]);
    EXPECT_EQ(choice["delta"].contains("role"), i == 0);
    content += choice["delta"].value("content", "");
    reasoning += choice["delta"].value("reasoning", "");
    EXPECT_EQ(choice["delta"].value("reasoning", ""),
              choice["delta"].value("reasoning_content", ""));
    if (!choice["finish_reason"].is_null()) ++finishes;
  }
  EXPECT_EQ(content, "Hello there");
  EXPECT_EQ(reasoning, "why");
  EXPECT_EQ(finishes, 1);
  EXPECT_EQ(events[events.size() - 2]["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(events.back()["choices"].empty());
  EXPECT_EQ(events.back()["usage"]["completion_tokens"], service.script.size() + 1);
}

TEST(Chat, StreamsUsageInEachChunkIfAsked) {
  TestService service;
  service.say("</think>a b c");
  const std::vector<Json> events = service.post_stream(kChat, chat(R"(, "stream": true,
                     "stream_options": {"include_usage": true, "continuous_usage_stats": true})"));
  for (const Json& event : events) EXPECT_TRUE(event.contains("usage")) << event;
}

TEST(Chat, ParsesToolCalls) {
  TestService service;
  service.say(
      "</think><tool_call>get_time<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>"
      "<tool_call>get_time</tool_call>");
  const Json choice = service.post_json(kChat, chat(kTools))["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  EXPECT_TRUE(choice["message"]["content"].is_null());
  const Json& calls = choice["message"]["tool_calls"];
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_EQ(calls[0]["type"], "function");
  EXPECT_TRUE(calls[0]["id"].get<std::string>().starts_with("call_"));
  EXPECT_NE(calls[0]["id"], calls[1]["id"]);
  EXPECT_EQ(calls[0]["function"]["name"], "get_time");
  EXPECT_EQ(Json::parse(calls[0]["function"]["arguments"].get<std::string>()),
            Json::parse(R"({"city": "Rome"})"));
  EXPECT_EQ(calls[1]["function"]["arguments"], "{}");
  const Json single = service.post_json(
      kChat, chat(std::string(kTools) + R"(, "parallel_tool_calls": false)"))["choices"][0];
  EXPECT_EQ(single["message"]["tool_calls"].size(), 1u);
}

TEST(Chat, StreamsToolCallsWithTheirIndex) {
  TestService service;
  service.say(
      "</think><tool_call>get_time<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>"
      "<tool_call>get_time</tool_call>");
  std::vector<std::string> names(2), arguments(2), ids(2);
  for (const Json& event :
       service.post_stream(kChat, chat(std::string(kTools) + R"(, "stream": true)"))) {
    for (const Json& call : event["choices"][0]["delta"].value("tool_calls", Json::array())) {
      const size_t index = call["index"];
      ids.at(index) += call.value("id", "");
      names.at(index) += call["function"].value("name", "");
      arguments.at(index) += call["function"]["arguments"].get<std::string>();
    }
  }
  EXPECT_EQ(names, std::vector<std::string>({"get_time", "get_time"}));
  EXPECT_EQ(ids[0].size(), 37u);
  EXPECT_EQ(Json::parse(arguments[0]), Json::parse(R"({"city": "Rome"})"));
  EXPECT_EQ(arguments[1], "{}");
}

TEST(Chat, TextThatSpellsATagStaysText) {
  TestService service;
  const std::vector<int32_t> tag =
      service.tokenizer->encode_plain("<tool_call>get_time</tool_call>");
  service.say("</think>See ");
  service.script.insert(service.script.end(), tag.begin(), tag.end());
  const Json choice = service.post_json(kChat, chat(kTools))["choices"][0];
  EXPECT_EQ(choice["message"]["content"], "See <tool_call>get_time</tool_call>");
  EXPECT_EQ(choice["finish_reason"], "stop");
}

TEST(Chat, StopStringsCancelAndDoNotCount) {
  TestService service;
  service.say("</think>one two three four");
  const Json answer = service.post_json(kChat, chat(R"(, "stop": ["xyz", " three"])"));
  EXPECT_EQ(answer["choices"][0]["message"]["content"], "one two");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(answer["choices"][0]["stop_reason"], " three");
  EXPECT_LT(answer["usage"]["completion_tokens"], service.script.size());
  EXPECT_TRUE(service.streams[0]->cancelled());
  EXPECT_EQ(service.streams[0]->cancel_reason(), FinishReason::kStop);
  const Json included =
      service.post_json(kChat, chat(R"(, "stop": " three", "include_stop_str_in_output": true)"));
  EXPECT_EQ(included["choices"][0]["message"]["content"], "one two three");
}

TEST(Chat, StopStringsSeeTagsAndThoughts) {
  TestService service;
  service.say("why not</think>one");
  Json choice = service.post_json(kChat, chat(R"(, "stop": "</think>")"))["choices"][0];
  EXPECT_EQ(choice["message"]["reasoning"], "why not");
  EXPECT_EQ(choice["message"]["content"], Json());
  // Held back at first, as it could become the stop string, the tag is still a tag.
  choice = service.post_json(kChat, chat(R"(, "stop": "</think>two")"))["choices"][0];
  EXPECT_EQ(choice["message"]["content"], "one");
  EXPECT_EQ(choice["message"]["reasoning"], "why not");
}

TEST(Chat, StopTokensAreNamed) {
  TestService service;
  service.say("</think>one");
  service.finish.stop_token = {.id = 100};
  const Json choice = service.post_json(kChat, chat(R"(, "stop_token_ids": [100])"))["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_EQ(choice["stop_reason"], 100);
}

TEST(Chat, MakesSeveralChoices) {
  TestService service;
  service.say("</think>Hi");
  const Json answer = service.post_json(kChat, chat(R"(, "n": 3, "seed": 7)"));
  ASSERT_EQ(answer["choices"].size(), 3u);
  EXPECT_EQ(answer["choices"][2]["index"], 2);
  EXPECT_EQ(service.requests[0].sampling.seed, 7u);
  EXPECT_NE(service.requests[1].sampling.seed, service.requests[2].sampling.seed);
  EXPECT_EQ(answer["usage"]["completion_tokens"], 3 * (service.script.size() + 1));
  EXPECT_EQ(answer["usage"]["prompt_tokens"], service.requests[0].prompt.size());
}

TEST(Chat, GivesLogprobs) {
  TestService service;
  service.say("</think>Hi");
  const Json content = service.post_json(
      kChat, chat(R"(, "logprobs": true, "top_logprobs": 2)"))["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), service.script.size() + 1);  // with the stop token
  EXPECT_EQ(content.back()["token"], "<|user|>");
  EXPECT_EQ(content[0]["token"], "</think>");
  EXPECT_EQ(content[0]["logprob"], -0.5);
  EXPECT_EQ(content[0]["bytes"].size(), 8u);
  EXPECT_EQ(content[0]["top_logprobs"].size(), 2u);
  EXPECT_EQ(content[0]["top_logprobs"][1]["logprob"], -1.5);
  const Json as_ids =
      service.post_json(kChat, chat(R"(, "logprobs": true, "return_tokens_as_token_ids": true)"));
  EXPECT_EQ(as_ids["choices"][0]["logprobs"]["content"][0]["token"],
            "token_id:" + std::to_string(service.script[0]));
}

TEST(Chat, StreamedLogprobsCoverEachTokenOnce) {
  TestService service;
  service.say("</think>Hi there, you");
  std::vector<std::string> tokens;
  for (const Json& event :
       service.post_stream(kChat, chat(R"(, "stream": true, "logprobs": true, "stop": "zzz")"))) {
    const Json& logprobs = event["choices"][0]["logprobs"];
    if (logprobs.is_null()) continue;
    for (const Json& entry : logprobs["content"]) tokens.push_back(entry["token"]);
  }
  EXPECT_EQ(tokens.size(), service.script.size() + 1);
  EXPECT_EQ(tokens.back(), "<|user|>");
}

TEST(Chat, ReturnsIdsAndPromptLogprobs) {
  TestService service;
  service.say("</think>Hi");
  const Json answer =
      service.post_json(kChat, chat(R"(, "return_token_ids": true, "prompt_logprobs": 1)"));
  std::vector<int32_t> generated = service.script;
  generated.push_back(service.engine_options.eos_token_ids[0]);
  EXPECT_EQ(answer["choices"][0]["token_ids"], Json(generated));
  EXPECT_EQ(answer["prompt_token_ids"], Json(service.requests[0].prompt));
  EXPECT_EQ(answer["prompt_logprobs"].size(), service.requests[0].prompt.size());
  EXPECT_TRUE(answer["prompt_logprobs"][0].is_null());
}

TEST(Chat, EngineFailuresMakeTheServiceUnavailable) {
  TestService service;
  service.say("</think>Hi", FinishReason::kError);
  service.finish.error = "out of luck";
  const HttpResponse response = service.post(kChat, chat());
  EXPECT_EQ(response.status, 503);
  EXPECT_NE(response.body.find("out of luck"), std::string::npos);
  const std::vector<Json> events = service.post_stream(kChat, chat(R"(, "stream": true)"));
  EXPECT_EQ(events.back()["error"]["code"], 503);
  service.healthy = false;
  EXPECT_EQ(service.post(kChat, chat()).status, 503);
}

TEST(Chat, EndsAsTheEngineSays) {
  TestService service;
  service.say("</think>Hi", FinishReason::kLength);
  EXPECT_EQ(service.post_json(kChat, chat())["choices"][0]["finish_reason"], "length");
  service.say("", FinishReason::kAbort);
  EXPECT_EQ(service.post_json(kChat, chat())["choices"][0]["finish_reason"], "abort");
}

TEST(Completion, AnswersText) {
  TestService service;
  service.say(" three<think> four", FinishReason::kLength);
  const Json answer = service.post_json(kCompletion, completion());
  EXPECT_TRUE(answer["id"].get<std::string>().starts_with("cmpl-"));
  EXPECT_EQ(answer["object"], "text_completion");
  EXPECT_EQ(answer["choices"][0]["text"], " three<think> four");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(answer["usage"]["completion_tokens"], service.script.size());
  EXPECT_EQ(service.requests[0].sampling.max_tokens, 16);
}

// A model may have more ids than its tokenizer names.
TEST(Completion, TakesEveryIdOfTheModel) {
  TestService service;
  service.script = {6144, 6153};
  service.finish = {.reason = FinishReason::kLength};
  const Json answer =
      service.post_json(kCompletion, R"({"prompt": [6153], "stop_token_ids": [6153]})");
  EXPECT_EQ(service.requests.at(0).prompt, std::vector<int32_t>{6153});
  EXPECT_EQ(answer["choices"][0]["text"], "\uFFFD\uFFFD");
  const HttpResponse refusal = service.post(kCompletion, R"({"prompt": [6154]})");
  EXPECT_EQ(refusal.status, 400);
  EXPECT_NE(refusal.body.find("6153"), std::string::npos) << refusal.body;
}

TEST(Completion, TakesListsOfPrompts) {
  TestService service;
  service.say("x");
  const Json answer = service.post_json(kCompletion, R"({"prompt": [[1, 2], "one", [3]], "n": 2})");
  ASSERT_EQ(answer["choices"].size(), 6u);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(answer["choices"][size_t(i)]["index"], i);
  EXPECT_EQ(service.requests[1].prompt, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(service.requests[5].prompt, (std::vector<int32_t>{3}));
}

TEST(Completion, EchoesWithLogprobs) {
  TestService service;
  service.say(" three");
  const Json choice = service.post_json(
      kCompletion, completion(R"(, "echo": true, "logprobs": 1, "max_tokens": 1)"))["choices"][0];
  EXPECT_EQ(choice["text"], "one two three");
  const Json& logprobs = choice["logprobs"];
  const size_t count = service.requests[0].prompt.size() + service.script.size() + 1;
  for (const char* key : {"tokens", "token_logprobs", "top_logprobs", "text_offset"}) {
    EXPECT_EQ(logprobs[key].size(), count) << key;
  }
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  EXPECT_TRUE(logprobs["top_logprobs"][0].is_null());
  EXPECT_EQ(logprobs["token_logprobs"][1], -0.5);
  EXPECT_EQ(logprobs["text_offset"][0], 0);
  EXPECT_EQ(logprobs["text_offset"][1], logprobs["tokens"][0].get<std::string>().size());
}

TEST(Completion, EchoesThePromptAlone) {
  TestService service;
  service.say(" three");
  const Json answer = service.post_json(
      kCompletion, completion(R"(, "echo": true, "logprobs": 0, "max_tokens": 0)"));
  EXPECT_EQ(answer["choices"][0]["text"], "one two");
  EXPECT_EQ(answer["choices"][0]["logprobs"]["tokens"].size(), service.requests[0].prompt.size());
  EXPECT_EQ(answer["usage"]["completion_tokens"], 0);
}

TEST(Completion, Streams) {
  TestService service;
  service.say(" three four", FinishReason::kLength);
  std::string text;
  const std::vector<Json> events =
      service.post_stream(kCompletion, completion(R"(, "stream": true, "echo": true)"));
  for (const Json& event : events) text += event["choices"][0]["text"];
  EXPECT_EQ(text, "one two three four");
  EXPECT_EQ(events.back()["choices"][0]["finish_reason"], "length");
}

TEST(Completion, TruncatesPrompts) {
  TestService service;
  service.say("x");
  service.post(kCompletion, R"({"prompt": [1, 2, 3, 4], "truncate_prompt_tokens": 2})");
  EXPECT_EQ(service.requests[0].prompt, (std::vector<int32_t>{3, 4}));
  service.post(
      kCompletion,
      R"({"prompt": [1, 2, 3, 4], "truncate_prompt_tokens": 2, "truncation_side": "right"})");
  EXPECT_EQ(service.requests[1].prompt, (std::vector<int32_t>{1, 2}));
}

TEST(Render, ShowsThePrompt) {
  TestService service;
  const Json chat_prompt = service.post_json("/v1/chat/completions/render", chat());
  EXPECT_TRUE(chat_prompt["prompt"].get<std::string>().ends_with("<|user|>hi<|assistant|><think>"));
  EXPECT_EQ(service.tokenizer->decode(chat_prompt["token_ids"], false), chat_prompt["prompt"]);
  EXPECT_EQ(service.post_json("/v1/completions/render", completion())[0]["prompt"], "one two");
}

TEST(Tokenize, SpeaksBothDialects) {
  TestService service;
  const Json vllm =
      service.post_json("/tokenize", R"({"prompt": "one two", "return_token_strs": true})");
  EXPECT_EQ(vllm["count"], vllm["tokens"].size());
  EXPECT_EQ(vllm["max_model_len"], 512);
  EXPECT_EQ(vllm["token_strs"].size(), vllm["tokens"].size());
  const Json llama = service.post_json("/tokenize", R"({"content": "one two"})");
  EXPECT_EQ(llama["tokens"], vllm["tokens"]);
  const Json plain =
      service.post_json("/tokenize", R"({"content": "<think>", "parse_special": false})");
  EXPECT_GT(plain["tokens"].size(), 1u);
  const Json pieces =
      service.post_json("/tokenize", R"({"content": "é\u0000", "with_pieces": true})");
  EXPECT_TRUE(pieces["tokens"][0].contains("piece"));
  const Json messages =
      service.post_json("/tokenize", R"({"messages": [{"role": "user", "content": "hi"}]})");
  EXPECT_GT(messages["count"], 4);
  const Json text = service.post_json("/detokenize", "{\"tokens\": " + vllm["tokens"].dump() + "}");
  EXPECT_EQ(text["prompt"], "one two");
  EXPECT_EQ(text["content"], "one two");
  for (const char* body : {"{}", R"({"prompt": 1})", R"({"content": []})", R"({"messages": []})"}) {
    EXPECT_EQ(service.post("/tokenize", body).status, 400) << body;
  }
  for (const char* body :
       {"{}", R"({"tokens": "x"})", R"({"tokens": [-1]})", R"({"tokens": [9999999]})"}) {
    EXPECT_EQ(service.post("/detokenize", body).status, 400) << body;
  }
}

}  // namespace
}  // namespace nibble
