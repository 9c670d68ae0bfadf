// Sequence: one request in flight. Owned by the engine thread.
#pragma once

#include <chrono>
#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/prefix_cache.h"
#include "engine/request.h"
#include "engine/token_stream.h"

namespace nibble {

using Clock = std::chrono::steady_clock;

struct Sequence {
  Request request{};
  std::shared_ptr<TokenStream> stream{};
  uint64_t seed = 0;

  std::vector<int32_t> tokens{};  // prompt and output
  int num_prompt = 0;
  int num_computed = 0;                              // tokens whose records are in the cache
  int num_expanded = 0;                              // 0, or the prompt's, see Segment::expanded
  std::vector<int32_t> pages{};                      // page table
  std::vector<PrefixCache::Key> page_keys{};         // of the full pages, as far as published
  std::unordered_map<int32_t, int> output_counts{};  // kept only where a penalty needs it
  std::vector<TokenLogprobs> prompt_logprobs{};

  // This step, set by the scheduler.
  int first_row = 0;
  int num_rows = 0;
  bool samples = false;  // the last row's logits choose the next token

  Clock::time_point arrival{};
  Clock::time_point first_scheduled{};
  Clock::time_point first_token{};
  Clock::time_point last_token{};

  int num_output() const { return int(tokens.size()) - num_prompt; }
  int num_uncomputed() const { return int(tokens.size()) - num_computed; }
  bool wants_prompt_logprobs() const { return request.sampling.prompt_logprobs >= 0; }
};

}  // namespace nibble
