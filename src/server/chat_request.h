// The body of /v1/chat/completions, checked.
#pragma once

#include <nlohmann/json.hpp>

#include "server/generation_request.h"
#include "text/chat_template.h"
#include "text/output_parser.h"
#include "text/prompt.h"

namespace nibble {

struct ChatRequest {
  GenerationRequest generation{};
  RenderRequest render{};  // messages normalized, tools and kwargs as the template sees them
  nlohmann::ordered_json tools{};  // null, or those that the model may call
  bool parallel_tool_calls = true;
  bool include_reasoning = true;
};

// Throws ApiError 400 naming the field.
ChatRequest read_chat_request(const nlohmann::ordered_json& body, const Service& service);

// The part that makes the prompt, for /tokenize too: messages, tools and template options.
RenderRequest read_render(const Fields& fields, const Service& service);

// Refuses prompts that are too long before they are encoded. Worker.
Prompt render_chat(const RenderRequest& render, const GenerationRequest& generation,
                   const Service& service);

// How to read the model's output after that prompt.
ParserOptions parser_options(const ChatRequest& request, const Prompt& prompt,
                             const Service& service);

}  // namespace nibble
