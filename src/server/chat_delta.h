// ChatDelta: what a chat's message is made of; one chunk's share of it in a stream, all of it
// otherwise.
#pragma once

#include <string>
#include <vector>

#include "server/json_writer.h"
#include "server/options.h"
#include "text/output_parser.h"

namespace nibble {

struct ToolCallDelta {
  int index = 0;
  std::string id{};    // where the call begins
  std::string name{};  // likewise
  std::string arguments{};
};

struct ChatDelta {
  std::string content{};
  std::string reasoning{};
  std::vector<ToolCallDelta> tool_calls{};

  bool empty() const { return content.empty() && reasoning.empty() && tool_calls.empty(); }
  void add(const ParserEvent& event);
};

// The object of "delta". `first`: the message begins here.
void write_delta(const ChatDelta& delta, bool first, ReasoningField reasoning_field,
                 JsonWriter& writer);

// The object of "message".
void write_message(const ChatDelta& message, ReasoningField reasoning_field, JsonWriter& writer);

}  // namespace nibble
