// The draw of backend.h without sorting the vocabulary. Two vector passes find the best logit and
// the sum of exponentials; only tokens above a bound become candidates and are sorted, as far as
// needed.
//
// Bound for the n best: of the largest logits of blocks of 64 tokens, the n-th largest; at least n
// tokens reach it. Bound for a share of the mass: e^-10 of the best, then e^-20, then none.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/sample.cc"
#include "backend/cpu/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "hwy/foreach_target.h"  // before simd-inl.h
// clang-format off
#include "backend/cpu/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

constexpr int64_t kBlock = 64;

// Largest of x, of which there is at least one.
float largest(const float* x, int64_t n) {
  FloatVec most[4];
  for (FloatVec& m : most) m = set(-std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) most[j] = hn::Max(most[j], load(x + i + j * kLanes));
  }
  float best = max_of_lanes(hn::Max(hn::Max(most[0], most[1]), hn::Max(most[2], most[3])));
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

void largest_of_blocks(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kBlock) {
    *out++ = largest(x + i, n - i < kBlock ? n - i : kBlock);
  }
}

// First i with x[i] == value, or n.
int64_t find_first(const float* x, int64_t n, float value) {
  int64_t i = 0;
  while (i + kLanes <= n && hn::AllFalse(Floats(), hn::Eq(load(x + i), set(value)))) i += kLanes;
  while (i < n && x[i] != value) ++i;
  return i;
}

// Sum of e^((x - top) * factor).
double sum_exp(const float* x, int64_t n, float top, float factor) {
  double total = 0;
  int64_t i = 0;
  while (i + kLanes <= n) {
    FloatVec sum = zero();
    for (int j = 0; j < 64 && i + kLanes <= n; ++j, i += kLanes) {
      sum = hn::Add(sum, exp(hn::Mul(hn::Sub(load(x + i), set(top)), set(factor))));
    }
    total += double(sum_of_lanes(sum));
  }
  for (; i < n; ++i) total += std::exp((double(x[i]) - double(top)) * double(factor));
  return total;
}

// Ids of x >= least, rising; their number.
int64_t find_at_least(const float* x, int64_t n, float least, int32_t* ids) {
  int64_t count = 0;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    if (hn::AllFalse(Floats(), hn::Ge(load(x + i), set(least)))) continue;
    for (int j = 0; j < kLanes; ++j) {
      ids[count] = int32_t(i + j);
      count += x[i + j] >= least;
    }
  }
  for (; i < n; ++i) {
    ids[count] = int32_t(i);
    count += x[i] >= least;
  }
  return count;
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(largest);
HWY_EXPORT(largest_of_blocks);
HWY_EXPORT(find_first);
HWY_EXPORT(sum_exp);
HWY_EXPORT(find_at_least);

namespace {

constexpr int64_t kBlockSize = 64;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int32_t best_token(const float* logits, int64_t vocab) {
  const float best = HWY_DYNAMIC_DISPATCH(largest)(logits, vocab);
  return int32_t(HWY_DYNAMIC_DISPATCH(find_first)(logits, vocab, best) % vocab);
}

// Applies a row's edits; `saved` gets what they overwrote.
void apply_edits(const SampleBatch& batch, const SampleRow& row, float* logits,
                 std::vector<float>& saved) {
  saved.clear();
  for (int i = 0; i < row.num_edits; ++i) {
    const LogitEdit& edit = batch.edits[size_t(row.first_edit + i)];
    float& logit = logits[edit.token];
    saved.push_back(logit);
    logit = (logit > 0 ? logit / edit.repetition : logit * edit.repetition) + edit.offset;
  }
}

void undo_edits(const SampleBatch& batch, const SampleRow& row, float* logits,
                const std::vector<float>& saved) {
  for (int i = row.num_edits - 1; i >= 0; --i) {
    logits[batch.edits[size_t(row.first_edit + i)].token] = saved[size_t(i)];
  }
}

}  // namespace

void Sampler::collect(const float* logits, int64_t vocab, float least, Thread& memory) {
  int32_t* ids = memory.ids.fit(size_t(vocab) + 1);
  const int64_t count = HWY_DYNAMIC_DISPATCH(find_at_least)(logits, vocab, least, ids);
  memory.candidates.resize(size_t(count));
  for (int64_t i = 0; i < count; ++i) memory.candidates[size_t(i)] = {logits[ids[i]], ids[i]};
}

// A logit that at least `count` tokens reach, or -infinity.
float Sampler::bound_of_best(const float* logits, int64_t vocab, int64_t count, Thread& memory) {
  std::vector<float>& tops = memory.block_tops;
  tops.resize(size_t((vocab + kBlockSize - 1) / kBlockSize));
  if (count > int64_t(tops.size())) return -kInfinity;
  HWY_DYNAMIC_DISPATCH(largest_of_blocks)(logits, vocab, tops.data());
  std::nth_element(tops.begin(), tops.begin() + count - 1, tops.end(), std::greater<float>());
  return tops[size_t(count - 1)];
}

// Keeps the best `count` candidates, in order.
void Sampler::sort_best(int64_t count, Thread& memory) {
  std::vector<Candidate>& c = memory.candidates;
  if (count < int64_t(c.size())) {
    std::nth_element(c.begin(), c.begin() + count, c.end());
    c.resize(size_t(count));
  }
  std::sort(c.begin(), c.end());
}

// Chooses among the candidates, which are all that min_p and top_k may keep, in order.
int32_t Sampler::draw_of_best(const SampleRow& row, double best, Thread& memory) {
  std::vector<double>& weights = memory.weights;
  weights.clear();
  double total = 0;
  for (const Candidate& candidate : memory.candidates) {
    const double weight = std::exp((candidate.logit - best) / double(row.temperature));
    if (weight < double(row.min_p)) break;
    weights.push_back(weight);
    total += weight;
  }
  double sum = 0;
  size_t kept = 0;
  while (kept < weights.size() && (kept == 0 || sum < double(row.top_p) * total)) {
    sum += weights[kept++];
  }
  if (kept == 0) return 0;  // logits that are not numbers
  total = sum;
  sum = 0;
  for (size_t i = 0; i < kept; ++i) {
    sum += weights[i];
    if (sum > double(row.uniform) * total) return memory.candidates[i].id;
  }
  return memory.candidates[kept - 1].id;
}

// Chooses by walking down the candidates, which are sorted as the walk needs them: until they hold
// top_p of `total`, or, without top_p, until the draw is decided. Returns -1 when they do not reach
// that far, unless they are `complete`.
int32_t Sampler::draw_of_prefix(const SampleRow& row, double best, double total, bool complete,
                                Thread& memory) {
  std::vector<Candidate>& c = memory.candidates;
  std::vector<double>& weights = memory.weights;
  weights.clear();
  const bool cut = row.top_p < 1;
  const double enough = double(cut ? row.top_p : row.uniform) * total;
  double sum = 0;
  size_t sorted = 0;
  bool reached = false;
  for (size_t i = 0; i < c.size() && !reached; ++i) {
    if (i == sorted) {
      const size_t next = std::min(c.size(), std::max<size_t>(64, 4 * sorted));
      const auto middle = c.begin() + ptrdiff_t(next);
      if (next < c.size()) std::nth_element(c.begin() + ptrdiff_t(sorted), middle, c.end());
      std::sort(c.begin() + ptrdiff_t(sorted), middle);
      sorted = next;
    }
    weights.push_back(std::exp((c[i].logit - best) / double(row.temperature)));
    sum += weights.back();
    reached = cut ? sum >= enough : sum > enough;
  }
  if (weights.empty() || (!reached && !complete)) return -1;
  if (!cut) return c[weights.size() - 1].id;
  const double kept = sum;
  sum = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    sum += weights[i];
    if (sum > double(row.uniform) * kept) return c[i].id;
  }
  return c[weights.size() - 1].id;
}

int32_t Sampler::draw_by_mass(const SampleRow& row, const float* logits, int64_t vocab, float best,
                              Thread& memory) {
  const double total = HWY_DYNAMIC_DISPATCH(sum_exp)(
      logits, vocab, best, std::min(1 / row.temperature, std::numeric_limits<float>::max()));
  for (const float depth : {10.0f, 20.0f, kInfinity}) {
    collect(logits, vocab, best - depth * row.temperature, memory);
    const int32_t token = draw_of_prefix(row, double(best), total, depth == kInfinity, memory);
    if (token >= 0) return token;
  }
  return 0;  // logits that are not numbers
}

int32_t Sampler::draw(const SampleRow& row, const float* logits, int64_t vocab, Thread& memory) {
  if (row.temperature == 0) return best_token(logits, vocab);
  const float best = HWY_DYNAMIC_DISPATCH(largest)(logits, vocab);
  const bool few = row.top_k > 0 && row.top_k < vocab;
  if (!few && row.min_p <= 0) return draw_by_mass(row, logits, vocab, best, memory);
  float least = few ? bound_of_best(logits, vocab, row.top_k, memory) : -kInfinity;
  if (row.min_p > 0) {  // a little lower than exact; draw_of_best() drops the rest
    least = std::max(least, best + row.temperature * (std::log(row.min_p) - 1e-3f));
  }
  collect(logits, vocab, least, memory);
  sort_best(few ? row.top_k : vocab, memory);
  return draw_of_best(row, double(best), memory);
}

void Sampler::sample_row(float* logits, int64_t vocab, const SampleBatch& batch,
                         const SampleRow& row, Thread& memory, Result out) {
  int32_t token = row.target;
  if (token < 0) {
    apply_edits(batch, row, logits, memory.saved);
    token = draw(row, logits, vocab, memory);
    undo_edits(batch, row, logits, memory.saved);
  }
  *out.token = token;
  if (row.num_logprobs < 0) return;
  const float best = HWY_DYNAMIC_DISPATCH(largest)(logits, vocab);
  const double log_sum =
      double(best) + std::log(HWY_DYNAMIC_DISPATCH(sum_exp)(logits, vocab, best, 1.0f));
  out.logprobs[0] = float(double(logits[token]) - log_sum);
  if (row.num_logprobs == 0) return;
  collect(logits, vocab, bound_of_best(logits, vocab, row.num_logprobs, memory), memory);
  sort_best(row.num_logprobs, memory);
  for (size_t k = 0; k < memory.candidates.size(); ++k) {
    out.logprobs[k + 1] = float(double(memory.candidates[k].logit) - log_sum);
    out.top_ids[k] = memory.candidates[k].id;
  }
}

void Sampler::run(Tensor logits, const SampleBatch& batch, SampleResult out) {
  const int64_t rows = int64_t(batch.rows.size());
  CHECK(logits.rows >= rows, "%ld rows of logits", long(logits.rows));
  workers_.run(rows > 1 ? rows * logits.cols : 0, [&](int thread) {
    const Share share = workers_.share(thread, rows);
    for (int64_t r = share.first; r < share.last; ++r) {
      const bool wanted = batch.rows[size_t(r)].num_logprobs >= 0;
      sample_row(
          logits.row<float>(r), logits.cols, batch, batch.rows[size_t(r)], threads_[size_t(thread)],
          {.token = out.tokens.row<int32_t>(r),
           .logprobs = wanted ? out.logprobs.row<float>(r) : nullptr,
           .top_ids = wanted && batch.max_logprobs > 0 ? out.top_ids.row<int32_t>(r) : nullptr});
    }
  });
}

}  // namespace nibble
#endif
