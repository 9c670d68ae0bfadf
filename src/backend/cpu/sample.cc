// The draw of backend.h without sorting the vocabulary. Two vector passes find the best logit and
// the sum of exponentials; only tokens above a bound become candidates. Among these, the place
// where the running sum of probabilities passes a value is found by halving: about two passes, no
// sort.
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

void CpuSampler::collect(const float* logits, int64_t vocab, float least, Thread& memory) {
  int32_t* ids = memory.ids.fit(size_t(vocab) + 1);
  const int64_t count = HWY_DYNAMIC_DISPATCH(find_at_least)(logits, vocab, least, ids);
  memory.candidates.resize(size_t(count));
  for (int64_t i = 0; i < count; ++i) memory.candidates[size_t(i)] = {logits[ids[i]], ids[i], 0};
}

// A logit that at least `count` tokens reach, or -infinity.
float CpuSampler::bound_of_best(const float* logits, int64_t vocab, int64_t count, Thread& memory) {
  std::vector<float>& tops = memory.block_tops;
  tops.resize(size_t((vocab + kBlockSize - 1) / kBlockSize));
  if (count > int64_t(tops.size())) return -kInfinity;
  HWY_DYNAMIC_DISPATCH(largest_of_blocks)(logits, vocab, tops.data());
  std::nth_element(tops.begin(), tops.begin() + count - 1, tops.end(), std::greater<float>());
  return tops[size_t(count - 1)];
}

// Keeps the best `count` candidates, in no order.
void CpuSampler::keep_best(int64_t count, Thread& memory) {
  std::vector<Candidate>& c = memory.candidates;
  if (count >= int64_t(c.size())) return;
  std::nth_element(c.begin(), c.begin() + count, c.end());
  c.resize(size_t(count));
}

void CpuSampler::weigh(const SampleRow& row, float best, Thread& memory) {
  for (Candidate& c : memory.candidates) {
    c.weight = double(std::exp((c.logit - best) / row.temperature));
  }
}

// Of the first `count` candidates, brought into order as far as needed: the one at which the
// running sum of weights reaches `mass`, or, `strictly`, exceeds it; `count` if none does. `sum`
// gets the running sum there.
size_t CpuSampler::first_beyond(double mass, bool strictly, size_t count, Thread& memory,
                                double* sum) {
  const auto beyond = [&](double value) { return strictly ? value > mass : value >= mass; };
  const auto c = memory.candidates.begin();
  size_t first = 0, last = count;
  *sum = 0;  // of the candidates before `first`
  while (last - first > 32) {
    const size_t middle = first + (last - first) / 2;
    std::nth_element(c + ptrdiff_t(first), c + ptrdiff_t(middle), c + ptrdiff_t(last));
    double half = 0;
    for (size_t i = first; i < middle; ++i) half += memory.candidates[i].weight;
    if (beyond(*sum + half)) {
      last = middle;
    } else {
      *sum += half;
      first = middle;
    }
  }
  std::sort(c + ptrdiff_t(first), c + ptrdiff_t(last));
  for (size_t i = first; i < last; ++i) {
    *sum += memory.candidates[i].weight;
    if (beyond(*sum)) return i;
  }
  return last == count ? count : last - 1;  // the order of summing may cost the last digits
}

// Chooses among the weighed candidates, of which the best come before all other tokens; `total` is
// the weight of all tokens that may be chosen. Returns -1 when the choice may lie beyond the
// candidates, unless they are `complete`.
int32_t CpuSampler::draw_of(const SampleRow& row, double total, bool complete, Thread& memory) {
  std::vector<Candidate>& c = memory.candidates;
  if (c.empty()) return -1;
  size_t kept = c.size();
  if (row.top_p < 1) {
    const size_t i = first_beyond(double(row.top_p) * total, false, kept, memory, &total);
    if (i == kept && !complete) return -1;
    kept = std::min(kept, i + 1);
  }
  double sum = 0;
  const size_t i = first_beyond(double(row.uniform) * total, true, kept, memory, &sum);
  if (i < kept) return c[i].id;
  if (!complete && row.top_p >= 1) return -1;
  return std::max_element(c.begin(), c.begin() + ptrdiff_t(kept))->id;  // the least likely
}

int32_t CpuSampler::draw_by_mass(const SampleRow& row, const float* logits, int64_t vocab,
                                 float best, Thread& memory) {
  const double total = HWY_DYNAMIC_DISPATCH(sum_exp)(
      logits, vocab, best, std::min(1 / row.temperature, std::numeric_limits<float>::max()));
  for (const float depth : {10.0f, 20.0f, kInfinity}) {
    collect(logits, vocab, best - depth * row.temperature, memory);
    weigh(row, best, memory);
    const int32_t token = draw_of(row, total, depth == kInfinity, memory);
    if (token >= 0) return token;
  }
  return 0;  // logits that are not numbers
}

int32_t CpuSampler::draw(const SampleRow& row, const float* logits, int64_t vocab, Thread& memory) {
  if (row.temperature == 0) return best_token(logits, vocab);
  const float best = HWY_DYNAMIC_DISPATCH(largest)(logits, vocab);
  const bool few = row.top_k > 0 && row.top_k < vocab;
  if (!few && row.min_p <= 0) return draw_by_mass(row, logits, vocab, best, memory);
  float least = few ? bound_of_best(logits, vocab, row.top_k, memory) : -kInfinity;
  if (row.min_p > 0) {  // a little lower than exact
    least = std::max(least, best + row.temperature * (std::log(row.min_p) - 1e-3f));
  }
  collect(logits, vocab, least, memory);
  keep_best(few ? row.top_k : vocab, memory);
  weigh(row, best, memory);
  std::erase_if(memory.candidates, [&](const Candidate& c) { return c.weight < row.min_p; });
  double total = 0;
  for (const Candidate& c : memory.candidates) total += c.weight;
  return std::max(0, draw_of(row, total, true, memory));
}

void CpuSampler::sample_row(float* logits, int64_t vocab, const SampleBatch& batch,
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
  keep_best(row.num_logprobs, memory);
  std::sort(memory.candidates.begin(), memory.candidates.end());
  for (size_t k = 0; k < memory.candidates.size(); ++k) {
    out.logprobs[k + 1] = float(double(memory.candidates[k].logit) - log_sum);
    out.top_ids[k] = memory.candidates[k].id;
  }
}

void CpuSampler::run(Tensor logits, const SampleBatch& batch, SampleResult out) {
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
