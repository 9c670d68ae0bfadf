// Sequence: one request in flight. Owned by the engine thread.
#pragma once

#include <chrono>
#include <limits>
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

  // Prompt and output. The last are not known while steps that choose them have not finished:
  // -1 - r then, r the row of the choice among those of its step (see Batch::tokens).
  std::vector<int32_t> tokens{};
  int num_prompt = 0;
  int max_length = std::numeric_limits<int>::max();  // tokens at which it ends
  int num_computed = 0;                              // tokens whose records the steps so far make
  int num_expanded = 0;                              // 0, or the prompt's, see Segment::expanded
  std::vector<int32_t> pages{};                      // page table
  std::vector<PrefixCache::Key> page_keys{};         // of the full pages, as far as published
  std::unordered_map<int32_t, int> output_counts{};  // kept only where a penalty needs it
  std::vector<TokenLogprobs> prompt_logprobs{};

  // This step, set by the scheduler.
  int first_row = 0;
  int num_rows = 0;
  bool samples = false;       // the last row's logits choose the next token
  int first_logit_row = 0;    // of its rows among Batch::logit_rows
  int num_prompt_logits = 0;  // of them for prompt log-probabilities; the choice is behind them

  Clock::time_point arrival{};
  Clock::time_point first_scheduled{};
  Clock::time_point first_token{};
  Clock::time_point last_token{};

  int num_output() const { return int(tokens.size()) - num_prompt; }
  int num_uncomputed() const { return int(tokens.size()) - num_computed; }
  int num_known() const {
    size_t known = tokens.size();
    while (known > 0 && tokens[known - 1] < 0) --known;
    return int(known);
  }
  // Nothing is left to compute; its last tokens may not be known yet.
  bool is_complete() const { return int(tokens.size()) >= max_length; }
  bool wants_prompt_logprobs() const { return request.sampling.prompt_logprobs >= 0; }
  // Its next choice depends on the tokens before it, not only on how many there are.
  bool has_penalties() const {
    const SamplingParams& p = request.sampling;
    return p.repetition_penalty != 1.0f || p.presence_penalty != 0 || p.frequency_penalty != 0;
  }
};

}  // namespace nibble
