// Sampler: what the requests ask of the next token -> plain rows for the backend's draw. Holds the
// stages that need a sequence's history: penalties, bias, bans.
#pragma once

#include <unordered_map>
#include <vector>

#include "backend/backend.h"
#include "engine/sequence.h"

namespace nibble {

class Sampler {
 public:
  // Result buffers for `max_rows` rows live on the backend.
  Sampler(Backend& backend, int max_rows, int max_logprobs, int vocab,
          std::vector<int32_t> eos_token_ids);
  ~Sampler();
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;

  // Chooses a token for each of batch.logit_rows. Afterwards row r's results are token(r) and
  // logprobs(r), rows in the order of batch.logit_rows; of one sequence first its prompt rows.
  void sample(Tensor logits, const Batch& batch, const std::vector<Sequence*>& scheduled);

  int32_t token(int row) const { return tokens_[size_t(row)]; }
  // Of a row whose request asked for them.
  TokenLogprobs logprobs(int row) const;

  // Whether the token ends the sequence, now that it may.
  bool is_stop(const Sequence& sequence, int32_t token) const;

 private:
  void add_prompt_row(const Sequence& sequence, int position);
  void add_draw(const Sequence& sequence);
  void add_edits(const Sequence& sequence);

  Backend& backend_;
  const int max_logprobs_;
  const int vocab_;
  const std::vector<int32_t> eos_token_ids_;
  SampleBatch rows_;
  std::unordered_map<int32_t, LogitEdit> edits_;  // of the row being made
  SampleResult result_;                           // on the backend
  std::vector<int32_t> tokens_, top_ids_;         // on the host
  std::vector<float> logprobs_;
};

// The draw's randomness: a hash of seed and index of the output token, so that a sequence draws the
// same after a preemption, alone or in a batch. In [0, 1).
float uniform_of(uint64_t seed, int index);

}  // namespace nibble
