// OutputParser: a model's output, piece by piece -> reasoning, content and tool calls. One machine
// for all of GLM's parser names (glm45, glm47, deepseek_r1). Events do not depend on how the text
// is cut into pieces.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/tool_arguments.h"

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
  // Delta of reasoning or content, or of the arguments' JSON (of a key that comes twice, the last
  // counts, as JSON readers have it); the call's name, whole. Never empty.
  std::string text{};
  int tool_call = -1;  // index of the call
};

class OutputParser {
 public:
  explicit OutputParser(ParserOptions options);

  // The events that became certain with this piece. `tag`: the tag that the piece is, if the token
  // was that tag's own. The pieces together are UTF-8; pieces of whole characters give such events.
  std::vector<ParserEvent> push(std::string_view piece, Tag tag = Tag::kNone);
  // At the end of the output; `complete`: it ended by itself (stop), not by length.
  std::vector<ParserEvent> finish(bool complete);

  int num_tool_calls() const { return num_tool_calls_; }
  bool in_reasoning() const;  // whether text that came next would be reasoning

 private:
  enum class State : uint8_t {
    kReasoning,
    kContent,
    kName,       // after <tool_call>: a call only if a name and then the right tag follow
    kArguments,  // in a call, between its arguments
    kKey,
    kValue,
  };
  // Text that is passed on without its outer white space.
  struct Trimmed {
    bool empty = true;
    std::string blanks{};  // held back: dropped at the end, passed on before more text
  };

  void scan(std::string_view text);
  void take_text(std::string_view text);
  void take_tag(Tag tag);

  void say(std::string_view text);
  void take_tag_in_text(Tag tag);

  void take_name(std::string_view text);
  void take_tag_in_name(Tag tag);
  void give_up_call();

  void begin_call();
  void take_tag_in_arguments(Tag tag);
  void take_tag_in_key(Tag tag);
  void open_value();
  void take_value(std::string_view text);
  void take_tag_in_value(Tag tag);
  void close_value();
  void begin_argument();
  void end_call();

  void emit(ParserEvent::Kind kind, std::string_view text);
  void emit_arguments(std::string_view json);

  ParserOptions options_;
  State state_ = State::kContent;
  std::vector<ParserEvent> events_{};  // of the current push
  std::string partial_tag_{};          // held back by scan()
  Trimmed reasoning_{};
  Trimmed content_{};
  int num_tool_calls_ = 0;

  State before_call_ = State::kContent;
  std::string call_text_{};  // what followed <tool_call>, blanks and all
  std::string name_{};       // without a name the call is parsed and dropped
  bool has_arguments_ = false;
  std::string key_text_{};
  std::optional<std::string> key_{};  // none: the value is dropped
  ArgumentTypes types_{};
  std::string value_{};  // of a type that is not known before its end
};

}  // namespace nibble
