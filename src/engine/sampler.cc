#include "engine/sampler.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace nibble {

float uniform_of(uint64_t seed, int index) {
  uint64_t x = seed + (uint64_t(index) + 1) * 0x9e3779b97f4a7c15u;  // splitmix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return float(x >> 40) * 0x1p-24f;
}

Sampler::Sampler(Backend& backend, int max_rows, int max_logprobs, int vocab,
                 std::vector<int32_t> eos_token_ids)
    : backend_(backend),
      max_logprobs_(max_logprobs),
      vocab_(vocab),
      eos_token_ids_(std::move(eos_token_ids)) {
  const auto matrix = [&](DType dtype, int64_t cols) {
    void* memory = backend_.allocate(size_t(max_rows) * size_t(cols) * dtype_bytes(dtype));
    return Tensor(memory, dtype, max_rows, cols);
  };
  result_ = {.tokens = matrix(DType::kI32, 1),
             .logprobs = matrix(DType::kF32, 1 + max_logprobs),
             .top_ids = matrix(DType::kI32, max_logprobs)};
}

Sampler::~Sampler() {
  for (const Tensor& t : {result_.tokens, result_.logprobs, result_.top_ids}) {
    backend_.free(t.data);
  }
}

void Sampler::begin(Tensor logits, const Batch& batch, const std::vector<Sequence*>& scheduled) {
  CHECK(num_unfinished_ < kMostDraws);
  ++num_unfinished_;
  begun_ = (begun_ + 1) % kMostDraws;
  Draw& draw = draws_[begun_];
  draw.batch.rows.clear();
  draw.batch.edits.clear();
  draw.batch.max_logprobs = max_logprobs_;
  for (const Sequence* sequence : scheduled) {
    for (int i = 0; i < sequence->num_prompt_logits; ++i) {
      const int row = batch.logit_rows[size_t(sequence->first_logit_row + i)];
      add_prompt_row(*sequence, sequence->num_computed + row - sequence->first_row + 1);
    }
    if (sequence->samples) add_draw(*sequence);
  }
  const size_t count = draw.batch.rows.size();
  CHECK(count == batch.logit_rows.size());
  draw.has_logprobs = std::ranges::any_of(
      draw.batch.rows, [](const SampleRow& row) { return row.num_logprobs >= 0; });
  draw.tokens.resize(count);
  if (count == 0) return;
  backend_.sample(logits, draw.batch, result_);
  backend_.start_read(result_.tokens.data, draw.tokens.data(), count * sizeof(int32_t));
  if (!draw.has_logprobs) return;
  draw.logprobs.resize(count * size_t(1 + max_logprobs_));
  draw.top_ids.resize(count * size_t(max_logprobs_));
  backend_.start_read(result_.logprobs.data, draw.logprobs.data(),
                      draw.logprobs.size() * sizeof(float));
  backend_.start_read(result_.top_ids.data, draw.top_ids.data(),
                      draw.top_ids.size() * sizeof(int32_t));
}

void Sampler::finish() {
  CHECK(num_unfinished_ > 0);
  --num_unfinished_;
  finished_ = (finished_ + 1) % kMostDraws;
  Draw& draw = draws_[finished_];
  if (draw.tokens.empty()) return;
  backend_.finish_read(draw.tokens.data());
  if (!draw.has_logprobs) return;
  backend_.finish_read(draw.logprobs.data());
  backend_.finish_read(draw.top_ids.data());
}

void Sampler::add_prompt_row(const Sequence& sequence, int position) {
  draws_[begun_].batch.rows.push_back({.target = sequence.tokens[size_t(position)],
                                       .num_logprobs = sequence.request.sampling.prompt_logprobs});
}

void Sampler::add_draw(const Sequence& sequence) {
  const SamplingParams& p = sequence.request.sampling;
  SampleBatch& batch = draws_[begun_].batch;
  SampleRow row{.temperature = p.temperature,
                .top_k = p.top_k,
                .top_p = p.top_p,
                .min_p = p.min_p,
                .uniform = uniform_of(sequence.seed, sequence.num_output()),
                .num_logprobs = p.logprobs,
                .first_edit = int(batch.edits.size())};
  add_edits(sequence);
  row.num_edits = int(batch.edits.size()) - row.first_edit;
  batch.rows.push_back(row);
}

void Sampler::add_edits(const Sequence& sequence) {
  const SamplingParams& p = sequence.request.sampling;
  constexpr float kBan = -std::numeric_limits<float>::infinity();
  edits_.clear();
  const auto edit = [&](int32_t token) -> LogitEdit& {
    LogitEdit& e = edits_[token];
    e.token = token;
    return e;
  };
  if (p.repetition_penalty != 1.0f) {
    CHECK(sequence.num_known() == int(sequence.tokens.size()));
    for (const int32_t token : sequence.tokens) edit(token).repetition = p.repetition_penalty;
  }
  for (const auto& [token, count] : sequence.output_counts) {
    edit(token).offset -= p.frequency_penalty * float(count) + p.presence_penalty;
  }
  for (const auto& [token, bias] : p.logit_bias) edit(token).offset += bias;
  if (!p.allowed_token_ids.empty()) {
    std::vector<bool> allowed(size_t(vocab_), false);
    for (const int32_t token : p.allowed_token_ids) allowed[size_t(token)] = true;
    for (int32_t token = 0; token < vocab_; ++token) {
      if (!allowed[size_t(token)]) edit(token).offset = kBan;
    }
  }
  if (sequence.num_output() < p.min_tokens) {
    for (const int32_t token : eos_token_ids_) edit(token).offset = kBan;
    for (const int32_t token : p.stop_token_ids) edit(token).offset = kBan;
  }
  for (const auto& [token, e] : edits_) draws_[begun_].batch.edits.push_back(e);
}

TokenLogprobs Sampler::logprobs(int row) const {
  const Draw& draw = draws_[finished_];
  const float* values = draw.logprobs.data() + size_t(row) * size_t(1 + max_logprobs_);
  const int32_t* ids = draw.top_ids.data() + size_t(row) * size_t(max_logprobs_);
  TokenLogprobs out{.logprob = values[0]};
  for (int k = 0; k < draw.batch.rows[size_t(row)].num_logprobs; ++k) {
    out.top.emplace_back(ids[k], values[k + 1]);
  }
  return out;
}

bool Sampler::is_stop(const Sequence& sequence, int32_t token) const {
  const SamplingParams& p = sequence.request.sampling;
  if (std::ranges::find(p.stop_token_ids, token) != p.stop_token_ids.end()) return true;
  return !p.ignore_eos && std::ranges::find(eos_token_ids_, token) != eos_token_ids_.end();
}

}  // namespace nibble
