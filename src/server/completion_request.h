// The body of /v1/completions, checked.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "server/generation_request.h"

namespace nibble {

struct CompletionPrompt {
  std::vector<int32_t> ids{};
  std::string text{};  // for echo
};

struct CompletionRequest {
  GenerationRequest generation{};
  std::vector<CompletionPrompt> prompts{};  // fitted
  bool echo = false;
  bool no_output = false;  // max_tokens 0, with echo: only the prompt is wanted
};

// Encodes the prompts that are text. Worker. Throws ApiError 400 naming the field.
CompletionRequest read_completion_request(const nlohmann::ordered_json& body,
                                          const Service& service);

}  // namespace nibble
