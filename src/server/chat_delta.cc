#include "server/chat_delta.h"

#include "server/answer_parts.h"

namespace nibble {
namespace {

void write_reasoning(std::string_view reasoning, ReasoningField field, JsonWriter& writer) {
  const auto write = [&](std::string_view key) {
    writer.key(key);
    if (reasoning.empty()) {
      writer.null();
    } else {
      writer.string(reasoning);
    }
  };
  if (field == ReasoningField::kBoth || field == ReasoningField::kReasoning) write("reasoning");
  if (field == ReasoningField::kBoth || field == ReasoningField::kReasoningContent) {
    write("reasoning_content");
  }
}

void write_tool_calls(const std::vector<ToolCallDelta>& calls, bool with_index,
                      JsonWriter& writer) {
  writer.key("tool_calls").begin_array();
  for (const ToolCallDelta& call : calls) {
    writer.begin_object();
    if (with_index) writer.key("index").integer(call.index);
    if (!call.id.empty()) writer.key("id").string(call.id).key("type").string("function");
    writer.key("function").begin_object();
    if (!call.id.empty()) writer.key("name").string(call.name);
    writer.key("arguments").string(call.arguments);
    writer.end_object().end_object();
  }
  writer.end_array();
}

}  // namespace

void ChatDelta::add(const ParserEvent& event) {
  switch (event.kind) {
    case ParserEvent::Kind::kReasoning:
      reasoning += event.text;
      return;
    case ParserEvent::Kind::kContent:
      content += event.text;
      return;
    case ParserEvent::Kind::kToolCallStart:
      tool_calls.push_back(
          {.index = event.tool_call, .id = random_id("call_"), .name = event.text});
      return;
    case ParserEvent::Kind::kToolCallArguments:
      if (tool_calls.empty() || tool_calls.back().index != event.tool_call) {
        tool_calls.push_back({.index = event.tool_call});
      }
      tool_calls.back().arguments += event.text;
  }
}

void write_delta(const ChatDelta& delta, bool first, ReasoningField reasoning_field,
                 JsonWriter& writer) {
  writer.begin_object();
  if (first) writer.key("role").string("assistant");
  if (first || !delta.content.empty()) writer.key("content").string(delta.content);
  if (!delta.reasoning.empty()) write_reasoning(delta.reasoning, reasoning_field, writer);
  if (!delta.tool_calls.empty()) write_tool_calls(delta.tool_calls, true, writer);
  writer.end_object();
}

void write_message(const ChatDelta& message, ReasoningField reasoning_field, JsonWriter& writer) {
  writer.begin_object().key("role").string("assistant").key("content");
  if (message.content.empty() && !(message.reasoning.empty() && message.tool_calls.empty())) {
    writer.null();
  } else {
    writer.string(message.content);
  }
  for (const char* key : {"refusal", "annotations", "audio", "function_call"}) {
    writer.key(key).null();
  }
  write_reasoning(message.reasoning, reasoning_field, writer);
  if (!message.tool_calls.empty()) write_tool_calls(message.tool_calls, false, writer);
  writer.end_object();
}

}  // namespace nibble
