// What a client asked of the engine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace nibble {

struct SamplingParams {
  float temperature = 1.0f;         // 0: greedy
  float top_p = 1.0f;               // (0, 1]
  int top_k = 0;                    // 0: off
  float min_p = 0.0f;               // [0, 1]
  float repetition_penalty = 1.0f;  // > 0, over prompt and output
  float presence_penalty = 0.0f;    // [-2, 2], over the output
  float frequency_penalty = 0.0f;   // [-2, 2], over the output
  std::vector<std::pair<int32_t, float>> logit_bias{};
  std::vector<int32_t> allowed_token_ids{};  // empty: all
  std::optional<uint64_t> seed{};            // unset: the engine draws one
  int max_tokens = 16;
  int min_tokens = 0;  // no stop id before
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids{};  // besides the model's eos ids
  int logprobs = -1;                      // -1: none; n: of each token and the n best
  int prompt_logprobs = -1;               // the same for every prompt token but the first
};

enum class FinishReason : uint8_t { kStop, kLength, kAbort, kError };

struct Request {
  std::vector<int32_t> prompt{};  // at least one token; with max_tokens within max_model_len
  SamplingParams sampling{};
  std::string cache_salt{};  // requests share cached prefixes only under the same salt
  bool use_prefix_cache = true;
};

}  // namespace nibble
