#include "text/chat_template.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "base/error.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

const std::filesystem::path kGolden = NIBBLE_SOURCE_DIR "/tests/golden";

std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// A checkpoint's folder that holds only what a test writes to it.
class ChatTemplateTest : public testing::Test {
 protected:
  ChatTemplateTest()
      : folder_(std::filesystem::temp_directory_path() /
                ("chat_template_test_" + std::to_string(getpid()))) {
    std::filesystem::create_directories(folder_);
  }
  ~ChatTemplateTest() override { std::filesystem::remove_all(folder_); }

  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }

  std::string load_error() const {
    try {
      ChatTemplate::load(folder_);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  std::filesystem::path folder_;
};

RenderRequest request_of(const Json& test) {
  return {.messages = test.at("messages"),
          .tools = test.value("tools", Json()),
          .kwargs = test.value("kwargs", Json()),
          .add_generation_prompt = test.value("add_generation_prompt", true)};
}

// The 400 that a render ends with.
ApiError refusal(const ChatTemplate& chat_template, const RenderRequest& request) {
  try {
    chat_template.render(request);
  } catch (const ApiError& error) {
    return error;
  }
  return ApiError(200, "rendered");
}

TEST_F(ChatTemplateTest, RendersGlm47AsTransformersDoes) {
  const auto chat_template =
      ChatTemplate::load(folder_, "GLM-4.7", read(kGolden / "GLM-4.7-Flash.jinja"));
  const Json cases = Json::parse(read(kGolden / "glm47_template.json"));
  EXPECT_EQ(cases.size(), 166u);
  // nlohmann-json reads integers beyond 64 bits as doubles, so their last digits are lost.
  const std::string kBigInteger = "123456789012345678901";
  for (const Json& test : cases) {
    const RenderRequest request = request_of(test);
    if (test.contains("error")) {
      EXPECT_EQ(refusal(*chat_template, request).status, 400) << test.at("name");
    } else {
      std::string expected = test.at("rendered");
      const size_t big = expected.find(kBigInteger);
      if (big != std::string::npos) {
        expected.replace(big, kBigInteger.size(), "1.2345678901234568e+20");
      }
      EXPECT_EQ(chat_template->render(request), expected) << test.at("name");
    }
  }
}

TEST_F(ChatTemplateTest, PrefersTheFileToTheConfig) {
  write("tokenizer_config.json", R"({"chat_template": "config"})");
  EXPECT_EQ(ChatTemplate::load(folder_)->render({}), "config");
  write("chat_template.jinja", "file");
  EXPECT_EQ(ChatTemplate::load(folder_)->render({}), "file");
}

TEST_F(ChatTemplateTest, TakesTheDefaultOfANamedList) {
  write("tokenizer_config.json", R"({"chat_template": [
      {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]})");
  EXPECT_EQ(ChatTemplate::load(folder_)->render({}), "default");
}

TEST_F(ChatTemplateTest, IsNullWithoutATemplate) {
  EXPECT_EQ(ChatTemplate::load(folder_), nullptr);
  write("tokenizer_config.json", R"({"bos_token": "<s>", "chat_template": null})");
  EXPECT_EQ(ChatTemplate::load(folder_), nullptr);
}

TEST_F(ChatTemplateTest, KnowsTheConfigsTokens) {
  write("tokenizer_config.json",
        R"({"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"},
            "unk_token": null})");
  write("chat_template.jinja",
        "{{ bos_token }} {{ eos_token }} {{ pad_token is defined }} {{ unk_token is defined }}");
  EXPECT_EQ(ChatTemplate::load(folder_)->render({}), "<s> </s> False False");
}

TEST_F(ChatTemplateTest, NamesTheFileAndTheLine) {
  write("chat_template.jinja", "a\nb\n{% if %}");
  EXPECT_NE(load_error().find((folder_ / "chat_template.jinja:3").string()), std::string::npos)
      << load_error();
  write("chat_template.jinja", std::string(300 << 10, 'x'));
  EXPECT_NE(load_error().find("262144"), std::string::npos) << load_error();
  std::filesystem::remove(folder_ / "chat_template.jinja");
  for (const char* config : {R"({"chat_template": "{{"})", R"({"chat_template": 7})", "[1]", "{",
                             R"({"chat_template": [{"name": "rag", "template": "x"}]})"}) {
    write("tokenizer_config.json", config);
    EXPECT_NE(load_error().find((folder_ / "tokenizer_config.json").string()), std::string::npos)
        << load_error();
  }
}

TEST_F(ChatTemplateTest, AnswersWithWhatTheTemplateRaised) {
  const auto chat_template =
      ChatTemplate::load(folder_, "test", "{{ raise_exception('roles must alternate') }}");
  const ApiError error = refusal(*chat_template, {});
  EXPECT_EQ(error.status, 400);
  EXPECT_STREQ(error.what(), "roles must alternate");
}

TEST_F(ChatTemplateTest, AnswersWithTheLineOfAnError) {
  const auto chat_template = ChatTemplate::load(folder_, "test", "\n{{ messages[0].x.y }}");
  const ApiError error = refusal(*chat_template, {});
  EXPECT_EQ(error.status, 400);
  EXPECT_NE(std::string(error.what()).find("line 2"), std::string::npos) << error.what();
}

TEST_F(ChatTemplateTest, KeepsTheRequestsFieldsFromKwargs) {
  const auto chat_template = ChatTemplate::load(
      folder_, "test", "{{ messages | length }}{{ tools }}{{ add_generation_prompt }}{{ x }}");
  EXPECT_EQ(chat_template->render({.kwargs = {{"x", 1}}, .add_generation_prompt = false}),
            "0NoneFalse1");
  for (const char* name : {"messages", "tools", "add_generation_prompt"}) {
    const ApiError error = refusal(*chat_template, {.kwargs = {{name, 1}}});
    EXPECT_EQ(error.status, 400);
    EXPECT_EQ(error.param, std::string("chat_template_kwargs.") + name);
  }
  EXPECT_EQ(refusal(*chat_template, {.kwargs = Json::array()}).param, "chat_template_kwargs");
}

TEST_F(ChatTemplateTest, KeepsTheOrderOfKeys) {
  const auto chat_template = ChatTemplate::load(folder_, "test", "{{ tools | tojson }}");
  const std::string tools = R"([{"z": 1, "a": {"y": 1.0, "b": null}, "m": "é\u2028<"}])";
  EXPECT_EQ(chat_template->render({.tools = Json::parse(tools)}),
            "[{\"z\": 1, \"a\": {\"y\": 1.0, \"b\": null}, \"m\": \"é\u2028<\"}]");
}

// Lists in lists. Built by moves, never copied: nlohmann's copy recurses, a frame a level.
Json nested(int depth) {
  Json value = 1;
  for (int i = 0; i < depth; ++i) value = Json::array({std::move(value)});
  return value;
}

TEST_F(ChatTemplateTest, RefusesDeepMessages) {
  const auto chat_template = ChatTemplate::load(folder_, "test", "{{ messages }}");
  EXPECT_EQ(refusal(*chat_template, {.messages = nested(89)}).status, 200);
  EXPECT_EQ(refusal(*chat_template, {.messages = nested(100000)}).param, "messages");
  EXPECT_EQ(refusal(*chat_template, {.tools = nested(100000)}).param, "tools");
  Json kwargs;
  kwargs["x"] = nested(100000);
  EXPECT_EQ(refusal(*chat_template, {.kwargs = std::move(kwargs)}).param, "chat_template_kwargs");
}

TEST_F(ChatTemplateTest, RepairsBrokenUtf8) {
  const auto chat_template = ChatTemplate::load(folder_, "test", "{{ messages[0] }}");
  EXPECT_EQ(chat_template->render({.messages = Json::array({"a\xff"})}), "a\uFFFD");
}

}  // namespace
}  // namespace nibble
