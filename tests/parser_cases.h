// Answers in pieces, what the parser makes of them, and the cases of
// tests/golden/parser_cases.json.
#pragma once

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "text/output_parser.h"

namespace nibble {

struct Piece {
  std::string text{};
  Tag tag = Tag::kNone;
};

struct ParsedCall {
  std::string name{};
  std::string arguments{};
  bool operator==(const ParsedCall&) const = default;
};

struct ParsedAnswer {
  std::string reasoning{};
  std::string content{};
  std::vector<ParsedCall> calls{};
  bool operator==(const ParsedAnswer&) const = default;
};

inline ParsedAnswer parse_answer(const ParserOptions& options, const std::vector<Piece>& pieces,
                                 bool complete) {
  ParsedAnswer answer;
  const auto take = [&](const std::vector<ParserEvent>& events) {
    for (const ParserEvent& event : events) {
      CHECK(!event.text.empty());
      switch (event.kind) {
        case ParserEvent::Kind::kReasoning:
          answer.reasoning += event.text;
          break;
        case ParserEvent::Kind::kContent:
          answer.content += event.text;
          break;
        case ParserEvent::Kind::kToolCallStart:
          CHECK(event.tool_call == int(answer.calls.size()));
          answer.calls.push_back({.name = event.text});
          break;
        case ParserEvent::Kind::kToolCallArguments:
          CHECK(event.tool_call + 1 == int(answer.calls.size()));
          answer.calls.back().arguments += event.text;
          break;
      }
    }
  };
  OutputParser parser(options);
  for (const Piece& piece : pieces) take(parser.push(piece.text, piece.tag));
  take(parser.finish(complete));
  CHECK(parser.num_tool_calls() == int(answer.calls.size()));
  return answer;
}

// `text` cut after each of the ascending positions `cuts`.
inline std::vector<Piece> cut(std::string_view text, const std::vector<size_t>& cuts) {
  std::vector<Piece> pieces;
  size_t begin = 0;
  for (const size_t end : cuts) {
    pieces.push_back({.text = std::string(text.substr(begin, end - begin))});
    begin = end;
  }
  pieces.push_back({.text = std::string(text.substr(begin))});
  return pieces;
}

// `text` cut at its tags, each a piece with its tag.
inline std::vector<Piece> cut_at_tags(std::string_view text) {
  std::vector<Piece> pieces;
  size_t begin = 0;
  for (size_t at = 0; (at = text.find('<', at)) != std::string_view::npos;) {
    size_t tag = std::size(kTagNames) - 1;
    while (tag > 0 && !text.substr(at).starts_with(kTagNames[tag])) --tag;
    if (tag == 0) {
      ++at;
      continue;
    }
    if (at > begin) pieces.push_back({.text = std::string(text.substr(begin, at - begin))});
    pieces.push_back({.text = std::string(kTagNames[tag]), .tag = Tag(tag)});
    begin = at += kTagNames[tag].size();
  }
  if (begin < text.size()) pieces.push_back({.text = std::string(text.substr(begin))});
  return pieces;
}

// What a model wrote and what a client should get from it.
struct ParserCase {
  std::string name{};
  std::string text{};
  bool complete = true;
  ParserOptions options{};  // tags are tokens
  nlohmann::json expected{};
};

// `source_folder`: the root of the tree.
inline std::vector<ParserCase> load_parser_cases(const std::string& source_folder) {
  std::ifstream file(source_folder + "/tests/golden/parser_cases.json");
  const auto document = nlohmann::ordered_json::parse(file);
  std::vector<ParserCase> cases;
  for (const auto& item : document.at("cases")) {
    const auto& tools = document.at("tools").at(item.at("tools").get<std::string>());
    cases.push_back({.name = item.at("name"),
                     .text = item.at("text"),
                     .complete = item.at("stop") == "stop",
                     .options = {.tool_calls = !tools.empty() && item.at("tool_choice") != "none",
                                 .starts_in_reasoning = item.at("prompt_ends_with") == "<think>",
                                 .tools = tools},
                     .expected = item.at("expected")});
  }
  return cases;
}

// What `pieces` give, in the form of ParserCase::expected; throws if arguments are no JSON.
inline nlohmann::json run_parser_case(const ParserCase& parser_case,
                                      const std::vector<Piece>& pieces, bool tags_in_text) {
  ParserOptions options = parser_case.options;
  options.tags_in_text = tags_in_text;
  const ParsedAnswer answer = parse_answer(options, pieces, parser_case.complete);
  const auto text_or_null = [](const std::string& text) {
    return text.empty() ? nlohmann::json() : nlohmann::json(text);
  };
  nlohmann::json calls = nlohmann::json::array();
  for (const ParsedCall& call : answer.calls) {
    calls.push_back({{"name", call.name}, {"arguments", nlohmann::json::parse(call.arguments)}});
  }
  const char* finish_reason = calls.empty() ? "stop" : "tool_calls";
  if (!parser_case.complete) finish_reason = "length";
  return {{"reasoning", text_or_null(answer.reasoning)},
          {"content", text_or_null(answer.content)},
          {"tool_calls", calls},
          {"finish_reason", finish_reason}};
}

}  // namespace nibble
