// What /v1/chat/completions and /v1/completions have in common: how to sample and what to return.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/request.h"
#include "server/fields.h"
#include "server/service.h"

namespace nibble {

struct GenerationRequest {
  SamplingParams sampling{};        // max_tokens is set when the prompt's length is known
  std::optional<int> max_tokens{};  // as asked
  int num_choices = 1;              // n
  std::vector<std::string> stop{};
  bool include_stop = false;
  bool skip_special_tokens = true;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  bool return_token_ids = false;
  bool return_tokens_as_token_ids = false;
  bool prompt_logprobs = false;  // asked for by that name
  std::string cache_salt{};
  std::optional<int> truncate_prompt_tokens{};
  bool truncate_right = false;  // drops the prompt's end rather than its start
};

// Reads and checks the common fields; fills in the server's defaults. Throws ApiError 400 naming
// the field, also for those that ask for what this server cannot do; 404 for an unknown model.
GenerationRequest read_generation(const Fields& fields, const Service& service);

// 404 for a `model` that is not served; none at all is the served one.
void check_model(const Fields& fields, const Service& service);

// How many tokens may be generated after a prompt of that length. Throws ApiError 400
// "context_length_exceeded" when prompt and `asked` do not fit.
int output_budget(int prompt_tokens, std::optional<int> asked, const Service& service);

// Refuses a text before it is encoded when it is too long however its bytes make tokens.
void check_prompt_bytes(size_t prompt_bytes, const GenerationRequest& request,
                        const Service& service);

// truncate_prompt_tokens, then the budget: completes request.sampling.
void fit_prompt(std::vector<int32_t>& prompt, GenerationRequest& request, const Service& service);

// Refuses more choices of so many prompts, with so many tokens in all, than the engine's queue and
// memory should hold for one request.
void check_copies(size_t num_prompts, size_t prompt_tokens, const GenerationRequest& request,
                  const Service& service);

}  // namespace nibble
