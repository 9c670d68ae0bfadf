#include "text/output_parser.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/parser_cases.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

std::vector<size_t> every_byte(std::string_view text) {
  std::vector<size_t> cuts(text.size());
  for (size_t i = 0; i < cuts.size(); ++i) cuts[i] = i;
  return cuts;
}

TEST(OutputParser, MeetsEveryCaseUnderEverySplit) {
  const std::vector<ParserCase> cases = load_parser_cases(NIBBLE_SOURCE_DIR);
  ASSERT_EQ(cases.size(), 107u);
  std::mt19937 random(7);
  for (const ParserCase& c : cases) {
    const auto check = [&](const std::vector<size_t>& cuts) {
      ASSERT_EQ(run_parser_case(c, cut(c.text, cuts), true), c.expected) << c.name;
    };
    check({});
    check(every_byte(c.text));
    for (size_t i = 0; i <= c.text.size(); ++i) check({i});
    for (int round = 0; round < 200; ++round) {
      std::vector<size_t> cuts(1 + random() % 12);
      for (size_t& at : cuts) at = random() % (c.text.size() + 1);
      std::sort(cuts.begin(), cuts.end());
      check(cuts);
    }
  }
}

TEST(OutputParser, MeetsEveryCaseFromTagTokens) {
  for (const ParserCase& c : load_parser_cases(NIBBLE_SOURCE_DIR)) {
    EXPECT_EQ(run_parser_case(c, cut_at_tags(c.text), false), c.expected) << c.name;
  }
}

const Json kTools = Json::parse(R"([{"type": "function", "function": {"name": "f", "parameters":
    {"properties": {"s": {"type": "string"}, "n": {"type": "integer"}, "a": {"type": "array"}}}}}])");

TEST(OutputParser, TakesSpelledTagsForTextWhenTokensHaveTags) {
  const std::vector<Piece> pieces = {
      {.text = "</think>a"},
      {.tag = Tag::kThinkEnd},
      {.text = "<tool_call>f</tool_call> "},
      {.tag = Tag::kToolCall},
      {.text = "f"},
      {.tag = Tag::kArgKey},
      {.text = "s"},
      {.tag = Tag::kArgKeyEnd},
      {.tag = Tag::kArgValue},
      {.text = "</arg_value></tool_call>"},
      {.tag = Tag::kArgValueEnd},
      {.tag = Tag::kToolCallEnd},
  };
  const ParsedAnswer expected = {
      .reasoning = "</think>a",
      .content = "<tool_call>f</tool_call>",
      .calls = {{.name = "f", .arguments = R"({"s": "</arg_value></tool_call>"})"}}};
  EXPECT_EQ(parse_answer({.starts_in_reasoning = true, .tools = kTools}, pieces, true), expected);
}

TEST(OutputParser, LeavesThoughtsInContentWithoutReasoning) {
  const ParserOptions options = {
      .reasoning = false, .starts_in_reasoning = true, .tags_in_text = true, .tools = kTools};
  const ParsedAnswer expected = {.content = "plan</think>Hi <think>", .calls = {{"f", "{}"}}};
  EXPECT_EQ(parse_answer(options, {{"plan</think>Hi <think><tool_call>f</tool_call>"}}, true),
            expected);
}

TEST(OutputParser, StreamsWhatIsCertain) {
  OutputParser parser({.starts_in_reasoning = true, .tags_in_text = true, .tools = kTools});
  const auto push = [&](std::string_view piece) {
    std::string out;
    for (const ParserEvent& event : parser.push(piece)) {
      const char* kinds[] = {"r:", "c:", "call:", "args:"};
      out += kinds[int(event.kind)] + event.text + "|";
    }
    return out;
  };
  EXPECT_TRUE(parser.in_reasoning());
  EXPECT_EQ(push(" plan "), "r:plan|");
  EXPECT_EQ(push("b <"), "r: b|");
  EXPECT_EQ(push("/think>Hi"), "c:Hi|");
  EXPECT_FALSE(parser.in_reasoning());
  EXPECT_EQ(push("<tool_call>f"), "");
  EXPECT_EQ(push("<arg_key>s</arg_key>"), "call:f|");
  EXPECT_EQ(push("<arg_value>a\"<"), "args:{\"s\": \"a\\\"|");
  EXPECT_EQ(push("b</arg_value"), "args:<b|");
  EXPECT_EQ(push("><arg_key>n</arg_key><arg_value>1"), "args:\"|");
  EXPECT_EQ(push("2</arg_value>"), "args:, \"n\": 12|");
  EXPECT_EQ(push("</tool_call>"), "args:}|");
  EXPECT_EQ(push(" \n"), "");
  EXPECT_EQ(parser.num_tool_calls(), 1);
  EXPECT_TRUE(parser.finish(true).empty());
}

TEST(OutputParser, KeepsDeeplyNestedValuesAsText) {
  const std::string nested = std::string(100'000, '[') + std::string(100'000, ']');
  const ParsedAnswer answer = parse_answer(
      {.tags_in_text = true, .tools = kTools},
      {{"<tool_call>f<arg_key>a</arg_key><arg_value>" + nested + "</arg_value></tool_call>"}},
      true);
  EXPECT_EQ(Json::parse(answer.calls.at(0).arguments).at("a"), nested);
}

// Anything but linear time would not end before the test's time limit.
TEST(OutputParser, EndsOnHostileText) {
  constexpr size_t kBytes = 400'000;
  for (const char* unit :
       {"<tool_call>", "<", " ", "<tool_call>f", "<tool_call>f</tool_call>", "</think><think>",
        "<arg_key>", "a <", "<tool_call>f<arg_key>s</arg_key><arg_value>"}) {
    std::string text;
    while (text.size() < kBytes) text += unit;
    const ParserOptions options = {.tags_in_text = true, .tools = kTools};
    const ParsedAnswer whole = parse_answer(options, cut(text, {}), true);
    EXPECT_EQ(parse_answer(options, cut(text, every_byte(text)), true), whole) << unit;
    EXPECT_EQ(parse_answer(options, cut_at_tags(text), true), whole) << unit;
  }
}

TEST(StartsInReasoning, ReadsThePromptsTail) {
  EXPECT_TRUE(starts_in_reasoning("[gMASK]<sop><|user|>hi<|assistant|><think>"));
  EXPECT_FALSE(starts_in_reasoning("[gMASK]<sop><|user|>hi<|assistant|></think>"));
  EXPECT_FALSE(starts_in_reasoning("<|user|><think><|assistant|>"));
  EXPECT_FALSE(starts_in_reasoning("<|assistant|><think>a</think>Hello"));
  EXPECT_TRUE(starts_in_reasoning("<|assistant|></think>a<|user|>b<|assistant|><think>so far"));
  EXPECT_TRUE(starts_in_reasoning("<think>\n"));
  EXPECT_FALSE(starts_in_reasoning("user: what is <think> for? assistant:"));
  EXPECT_FALSE(starts_in_reasoning(""));
}

}  // namespace
}  // namespace nibble
