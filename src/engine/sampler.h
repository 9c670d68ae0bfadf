// Sampler: what the requests ask of the next token -> plain rows for the backend's draw. Holds the
// stages that need a sequence's history: penalties, bias, bans.
#pragma once

#include <array>
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

  // Makes the backend choose a token for each of batch.logit_rows, and returns before it has. At
  // most kMostDraws are unfinished.
  void begin(Tensor logits, const Batch& batch, const std::vector<Sequence*>& scheduled);
  // Waits for the oldest that was begun: now row r's results are token(r) and logprobs(r), rows in
  // the order of batch.logit_rows; of one sequence first its prompt rows.
  void finish();

  // Where every draw leaves its tokens, on the backend: for Batch::chosen.
  const int32_t* chosen() const { return static_cast<const int32_t*>(result_.tokens.data); }

  int32_t token(int row) const { return draws_[finished_].tokens[size_t(row)]; }
  // Of a row whose request asked for them.
  TokenLogprobs logprobs(int row) const;

  // Whether the token ends the sequence, now that it may.
  bool is_stop(const Sequence& sequence, int32_t token) const;

 private:
  struct Draw {
    SampleBatch batch{};
    bool has_logprobs = false;
    std::vector<int32_t> tokens{}, top_ids{};  // on the host, when it is finished
    std::vector<float> logprobs{};
  };
  static constexpr size_t kMostDraws = 2;

  void add_prompt_row(const Sequence& sequence, int position);
  void add_draw(const Sequence& sequence);
  void add_edits(const Sequence& sequence);

  Backend& backend_;
  const int max_logprobs_;
  const int vocab_;
  const std::vector<int32_t> eos_token_ids_;
  std::unordered_map<int32_t, LogitEdit> edits_;  // of the row being made
  SampleResult result_;                           // on the backend
  std::array<Draw, kMostDraws> draws_;
  size_t begun_ = 0, finished_ = 0;  // the latest of each
  size_t num_unfinished_ = 0;
};

// The draw's randomness: a hash of seed and index of the output token, so that a sequence draws the
// same after a preemption, alone or in a batch. In [0, 1).
float uniform_of(uint64_t seed, int index);

}  // namespace nibble
