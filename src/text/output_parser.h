// OutputParser: a model's output, piece by piece -> reasoning, content and tool calls. One machine
// for all of GLM's parser names (glm45, glm47, deepseek_r1). Events do not depend on how the text
// is cut into pieces.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

enum class Tag : uint8_t {
  kNone,  // the piece is text
  kThink,
  kThinkEnd,
  kToolCall,
  kToolCallEnd,
  kArgKey,
  kArgKeyEnd,
  kArgValue,
  kArgValueEnd,
};

inline constexpr std::string_view kTagNames[] = {
    "",          "<think>",    "</think>",    "<tool_call>", "</tool_call>",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"};

struct ParserOptions {
  bool reasoning = true;   // false (no reasoning parser): thoughts stay in content, tags and all
  bool tool_calls = true;  // false (no tools, or tool_choice none): call tags are text
  bool starts_in_reasoning = false;  // the prompt's tail: see starts_in_reasoning()
  bool tags_in_text = false;  // true: text that spells a tag is one (callers without token ids)
  nlohmann::ordered_json tools{};  // definitions: their JSON schemas give arguments their types
};

// True when the rendered prompt leaves the model inside a thought: its last think tag opens one.
bool starts_in_reasoning(std::string_view rendered_prompt);

struct ParserEvent {
  enum class Kind : uint8_t { kReasoning, kContent, kToolCallStart, kToolCallArguments };
  Kind kind = Kind::kContent;
  std::string text{};  // delta of reasoning, content or the arguments' JSON; the call's name
  int tool_call = -1;  // index of the call
};

class OutputParser {
 public:
  explicit OutputParser(ParserOptions options);

  // The events that became certain with this piece. `tag`: the tag that the piece is, if the token
  // was that tag's own.
  std::vector<ParserEvent> push(std::string_view piece, Tag tag = Tag::kNone);
  // At the end of the output; `complete`: it ended by itself (stop), not by length.
  std::vector<ParserEvent> finish(bool complete);

  int num_tool_calls() const { return num_tool_calls_; }
  bool in_reasoning() const;

 private:
  ParserOptions options_;
  int num_tool_calls_ = 0;
};

}  // namespace nibble
