// The draw of backend.h without sorting the vocabulary, a block a row, after one for each part of a
// row has found the part's first token, and another has counted the part's tokens; where all rows
// only want their first, a warp a row takes it from those of the parts. Tokens are put
// in order of falling logit and rising id by a key; the stages are cuts in that order: the place
// where a running count (top_k, the n best) or a running sum of probabilities (top_p, the draw)
// reaches a target. A histogram over the distance from the best logit finds the bin of the cut, and
// only the tokens of that bin are compared with each other. It covers a window of distances, at
// first the nearest: tokens further away are many, and seldom matter.
//
// Sums are integers, e^((logit - best) / temperature) in units of 2^-36, and thereby the same in
// any order of adding. What is less likely than e^-25 of the best has no weight.
//
// us a call on an H100 80GB HBM3 for a vocabulary of 154880, launches among them, by a build
// before: greedy 1 row 11, 64 rows 27 (47 % of 3.1 TB/s); top_p 102 and 166 (8 %), of which the
// block of a row takes most by itself.
#include <algorithm>
#include <cstring>

#include "backend/cuda/ptx.cuh"
#include "backend/cuda/sample.h"
#include "backend/cuda/tile.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kBins = kThreads;
constexpr float kBinsPerUnit = 64;    // of distance / temperature: a window is 16 wide
constexpr int kWindows = 2;           // of which the last has no end
constexpr int kGathered = 1024;       // tokens of a bin that fit into shared memory
constexpr int kPartBits = 12;         // of a weight that one 32-bit sum takes: 2^20 tokens fit
constexpr int kPart = 16 * kThreads;  // tokens of a row that a block of its own counts
constexpr int kFirstThreads = 256;    // of a block that finds the first token of a part
constexpr int kFirstPart = 16 * kFirstThreads;
constexpr uint64_t kNoKey = ~uint64_t(0);

// Running counts and weights of tokens.
struct Mass {
  uint64_t weight;
  uint32_t count;

  __device__ void add(Mass other) {
    weight += other.weight;
    count += other.count;
  }
  // What a cut measures.
  __device__ uint64_t measure(bool by_count) const { return by_count ? count : weight; }
};

// A row's tokens by distance. Weights in three parts, so that 32-bit sums take them.
struct Bins {
  uint32_t weight_parts[3][kBins];
  uint32_t counts[kBins];
  Mass all;  // of the row
};

struct Shared {
  Bins bins;
  int window;    // that the bins cover
  Mass outside;  // before the window
  uint64_t keys[kGathered];
  uint64_t key_weights[kGathered];
  Mass warp_masses[kThreads / kWarp];
  float warp_values[kThreads / kWarp];
  uint64_t warp_keys[kThreads / kWarp];
  // Results for all threads.
  int gathered, bin;  // the bin within the window
  Mass before, reached;
  uint64_t key;
};

// Tokens in order: the key rises where the logit falls, and with the id among equals.
__device__ __forceinline__ uint64_t key_of(float logit, int id) {
  uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 becomes 0
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t(~bits) << 32 | uint32_t(id);
}

__device__ __forceinline__ int id_of(uint64_t key) {
  return int(uint32_t(key));
}

__device__ __forceinline__ Mass warp_total(Mass mass) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    Mass other{};
    other.weight = __shfl_xor_sync(0xffffffffu, mass.weight, offset);
    other.count = __shfl_xor_sync(0xffffffffu, mass.count, offset);
    mass.add(other);
  }
  return mass;
}

// In all threads the sum over the block.
__device__ Mass block_total(Mass mass, Shared& shared) {
  mass = warp_total(mass);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared.warp_masses[threadIdx.x / kWarp] = mass;
  __syncthreads();
  Mass sum{};
  for (int w = 0; w < kThreads / kWarp; ++w) sum.add(shared.warp_masses[w]);
  return sum;
}

// A row of logits under one temperature.
struct Row {
  const float* logits;
  int vocab;
  float best;
  float inverse_temperature;
  float min_p;

  __device__ __forceinline__ float distance(float logit) const {
    return (best - logit) * inverse_temperature;
  }
  // Over all windows.
  __device__ __forceinline__ int bin(float logit) const {
    return int(fminf(distance(logit) * kBinsPerUnit, float(kWindows * kBins - 1)));
  }
  // Nothing for what min_p drops, and for what is not a number.
  __device__ __forceinline__ Mass mass(float logit) const {
    const float share = expf(-distance(logit));
    Mass mass{};
    if (!(share >= min_p)) return mass;
    mass.weight = __float2ull_rn(share * 0x1p36f);
    mass.count = 1;
    return mass;
  }
};

// visit(logit, id) for every token, by some thread; four loads of 16 bytes in flight in each.
template <int threads = kThreads, typename Visit>
__device__ __forceinline__ void for_each_token(const float* logits, int vocab, Visit visit) {
  constexpr int kLoads = 4, kTile = threads * 4 * kLoads;
  int done = 0;
  if (reinterpret_cast<uintptr_t>(logits) % 16 == 0) {
    for (; done + kTile <= vocab; done += kTile) {
      float4 v[kLoads];
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        v[j] = reinterpret_cast<const float4*>(logits + done)[j * threads + threadIdx.x];
      }
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const int id = done + 4 * (j * threads + int(threadIdx.x));
        visit(v[j].x, id), visit(v[j].y, id + 1), visit(v[j].z, id + 2), visit(v[j].w, id + 3);
      }
    }
  }
  for (int i = done + threadIdx.x; i < vocab; i += threads) visit(logits[i], i);
}

// The first in order of `count` tokens from id `begin` on, in all threads; kNoKey where none is a
// number. `warp_keys`: of threads / kWarp.
template <int threads = kThreads>
__device__ uint64_t first_key_of(const float* logits, int begin, int count, uint64_t* warp_keys) {
  float best = -INFINITY;
  int best_id = count;
  for_each_token<threads>(logits + begin, count, [&](float logit, int id) {
    if (logit > best || (logit == best && id < best_id)) best = logit, best_id = id;
  });
  uint64_t first = best_id < count ? key_of(best, begin + best_id) : kNoKey;
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    first = min(first, __shfl_xor_sync(0xffffffffu, first, offset));
  }
  __syncthreads();
  if (threadIdx.x % kWarp == 0) warp_keys[threadIdx.x / kWarp] = first;
  __syncthreads();
  for (int w = 0; w < threads / kWarp; ++w) first = min(first, warp_keys[w]);
  return first;
}

// The first of a part of a row, a block a part; and empty bins, and the rows' parameters where
// there are any: brought from the host before the wait.
__global__ void __launch_bounds__(kFirstThreads)
    first_keys_kernel(Matrix<float> logits, uint64_t* part_keys, Bins* bins,
                      const SampleRow* on_host, SampleRow* rows) {
  __shared__ uint64_t warp_keys[kFirstThreads / kWarp];
  let_successor_begin();
  constexpr int kRowWords = int(sizeof(SampleRow) / sizeof(uint32_t));
  const bool brings = on_host != nullptr && blockIdx.x == 0 && int(threadIdx.x) < kRowWords;
  uint32_t word = 0;
  if (brings) word = __ldcv(reinterpret_cast<const uint32_t*>(on_host + blockIdx.y) + threadIdx.x);
  wait_for_predecessor();
  if (brings) reinterpret_cast<uint32_t*>(rows + blockIdx.y)[threadIdx.x] = word;
  auto* words = reinterpret_cast<uint32_t*>(bins + blockIdx.y);
  constexpr int kWords = int(sizeof(Bins) / sizeof(uint32_t));
  for (int i = int(blockIdx.x) * kFirstThreads + int(threadIdx.x); i < kWords;
       i += int(gridDim.x) * kFirstThreads) {
    words[i] = 0;
  }
  const int begin = int(blockIdx.x) * kFirstPart, vocab = int(logits.cols);
  const uint64_t first = first_key_of<kFirstThreads>(logits.row(blockIdx.y), begin,
                                                     min(kFirstPart, vocab - begin), warp_keys);
  if (threadIdx.x == 0) part_keys[blockIdx.y * gridDim.x + blockIdx.x] = first;
}

// Of logits that are not numbers, token 0 is the first.
__device__ __forceinline__ uint64_t or_token_0(uint64_t key) {
  return key == kNoKey ? 0 : key;
}

__host__ __device__ constexpr int first_parts(int64_t vocab) {
  return int((vocab + kFirstPart - 1) / kFirstPart);
}

// A row's first, in all threads, by each warp for itself.
__device__ __forceinline__ uint64_t first_of_parts(const uint64_t* part_keys, int64_t row,
                                                   int vocab) {
  const int parts = first_parts(vocab);
  uint64_t first = kNoKey;
  for (int p = int(threadIdx.x) % kWarp; p < parts; p += kWarp) {
    first = min(first, part_keys[row * parts + p]);
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    first = min(first, __shfl_xor_sync(0xffffffffu, first, offset));
  }
  return or_token_0(first);
}

// Where every row takes its first: a warp a row.
__global__ void __launch_bounds__(kWarp)
    take_first_kernel(const uint64_t* part_keys, int vocab, Matrix<int32_t> tokens) {
  let_successor_begin();
  wait_for_predecessor();
  const uint64_t first = first_of_parts(part_keys, blockIdx.x, vocab);
  if (threadIdx.x == 0) *tokens.row(blockIdx.x) = id_of(first);
}

__device__ __forceinline__ Row row_of(const float* logits, int vocab, const SampleRow& params,
                                      uint64_t first) {
  return {logits, vocab, logits[id_of(first)], fminf(1.0f / params.temperature, 1e30f),
          params.min_p};
}

// Fills the bins of a window.
__device__ void fill_bins(const Row& row, int window, Shared& shared) {
  __syncthreads();
  shared.bins.counts[threadIdx.x] = 0;
  for (auto& part : shared.bins.weight_parts) part[threadIdx.x] = 0;
  __syncthreads();
  constexpr uint32_t kMask = (1u << kPartBits) - 1;
  Mass nearer{}, all{};
  for_each_token(row.logits, row.vocab, [&](float logit, int) {
    const Mass mass = row.mass(logit);
    all.add(mass);
    const int bin = row.bin(logit) - window * kBins;
    if (bin < 0) nearer.add(mass);
    if (bin < 0 || bin >= kBins || mass.count == 0) return;
    atomicAdd(&shared.bins.counts[bin], 1u);
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      const uint32_t bits = uint32_t(mass.weight >> (part * kPartBits)) & (part < 2 ? kMask : ~0u);
      if (bits > 0) atomicAdd(&shared.bins.weight_parts[part][bin], bits);
    }
  });
  nearer = block_total(nearer, shared);
  all = block_total(all, shared);
  __syncthreads();
  if (threadIdx.x == 0) shared.window = window, shared.outside = nearer, shared.bins.all = all;
  __syncthreads();
}

// Whether a row's tokens are counted before its block begins: those that edits change are not.
__host__ __device__ inline bool is_counted_before(const SampleRow& row) {
  return row.temperature != 0 && row.target < 0 && row.num_edits == 0;
}

// Whether the row's token is its first, and nothing else is asked for.
bool takes_first(const SampleRow& row) {
  return row.temperature == 0 && row.target < 0 && row.num_edits == 0 && row.num_logprobs < 0;
}

// Adds a part of a row to the bins of the first window, a block a part.
__global__ void __launch_bounds__(kThreads)
    count_kernel(Matrix<float> logits, const SampleRow* rows, const uint64_t* part_keys,
                 Bins* bins) {
  __shared__ Shared shared;
  let_successor_begin();
  wait_for_predecessor();
  const int64_t r = blockIdx.y;
  const SampleRow params = rows[r];
  if (!is_counted_before(params)) return;
  const int vocab = int(logits.cols), begin = int(blockIdx.x) * kPart;
  const uint64_t first = first_of_parts(part_keys, r, vocab);
  Row part = row_of(logits.row(r), vocab, params, first);
  part.logits += begin, part.vocab = min(kPart, vocab - begin);
  fill_bins(part, 0, shared);
  const auto add = [](uint32_t& to, uint32_t value) {
    if (value > 0) atomicAdd(&to, value);
  };
  const int bin = int(threadIdx.x);
  add(bins[r].counts[bin], shared.bins.counts[bin]);
  for (int i = 0; i < 3; ++i) add(bins[r].weight_parts[i][bin], shared.bins.weight_parts[i][bin]);
  if (threadIdx.x != 0) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(&bins[r].all.weight),
            static_cast<unsigned long long>(shared.bins.all.weight));
  add(bins[r].all.count, shared.bins.all.count);
}

// The bins of the first window, counted before.
__device__ void take_bins(const Bins& bins, Shared& shared) {
  __syncthreads();
  const int bin = int(threadIdx.x);
  shared.bins.counts[bin] = bins.counts[bin];
  for (int i = 0; i < 3; ++i) shared.bins.weight_parts[i][bin] = bins.weight_parts[i][bin];
  if (threadIdx.x == 0) shared.window = 0, shared.outside = {}, shared.bins.all = bins.all;
  __syncthreads();
}

__device__ __forceinline__ Mass bin_mass(int bin, const Shared& shared) {
  Mass mass{};
  for (int part = 0; part < 3; ++part) {
    mass.weight += uint64_t(shared.bins.weight_parts[part][bin]) << (part * kPartBits);
  }
  mass.count = shared.bins.counts[bin];
  return mass;
}

// Sets shared.bin to the bin of the window where the running measure reaches `target`, and
// shared.before to the mass before it. False, in all threads, where none does.
__device__ bool find_bin(uint64_t target, bool by_count, Shared& shared) {
  const Mass mine = bin_mass(threadIdx.x, shared);
  Mass running = mine;  // of this thread's warp up to this thread
  const int lane = threadIdx.x % kWarp;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    Mass lower{};
    lower.weight = __shfl_up_sync(0xffffffffu, running.weight, offset);
    lower.count = __shfl_up_sync(0xffffffffu, running.count, offset);
    if (lane >= offset) running.add(lower);
  }
  __syncthreads();
  if (lane == kWarp - 1) shared.warp_masses[threadIdx.x / kWarp] = running;
  __syncthreads();
  for (unsigned w = 0; w < threadIdx.x / kWarp; ++w) running.add(shared.warp_masses[w]);
  running.add(shared.outside);
  Mass before = running;
  before.weight -= mine.weight;
  before.count -= mine.count;
  const bool is_here = before.measure(by_count) < target && running.measure(by_count) >= target;
  if (is_here) shared.bin = threadIdx.x, shared.before = before;
  return __syncthreads_or(is_here);
}

// Every token of bin `bin` of the window that min_p leaves: visit(key, mass), by some thread.
template <typename Visit>
__device__ void for_each_in_bin(const Row& row, int bin, const Shared& shared, Visit visit) {
  bin += shared.window * kBins;
  for_each_token(row.logits, row.vocab, [&](float logit, int id) {
    if (row.bin(logit) != bin) return;
    const Mass mass = row.mass(logit);
    if (mass.count > 0) visit(key_of(logit, id), mass);
  });
}

// The lowest key of the bin up to which the running measure reaches `target`, by halving: for bins
// of more tokens than fit into shared memory.
__device__ void halve_bin(const Row& row, uint64_t target, bool by_count, Shared& shared) {
  uint64_t low = 0, high = kNoKey;
  const int bin = shared.bin;
  const Mass before = shared.before;
  Mass reached{};
  while (low < high) {
    const uint64_t middle = low + (high - low) / 2;
    Mass mass{};
    for_each_in_bin(row, bin, shared, [&](uint64_t key, Mass m) {
      if (key <= middle) mass.add(m);
    });
    mass = block_total(mass, shared);
    mass.add(before);
    if (mass.measure(by_count) >= target) {
      high = middle;
      reached = mass;
    } else {
      low = middle + 1;
    }
  }
  if (threadIdx.x == 0) shared.key = low, shared.reached = reached;
  __syncthreads();
}

// Where the running measure in order reaches `target`: shared.key is that token's, shared.reached
// the mass up to and with it. The row has at least the target.
__device__ void find_cut(const Row& row, uint64_t target, bool by_count, Shared& shared) {
  if (shared.outside.measure(by_count) >= target) fill_bins(row, 0, shared);
  while (!find_bin(target, by_count, shared)) fill_bins(row, shared.window + 1, shared);
  const int bin = shared.bin, count = int(shared.bins.counts[bin]);
  if (count > kGathered) return halve_bin(row, target, by_count, shared);
  if (threadIdx.x == 0) shared.gathered = 0;
  __syncthreads();
  for_each_in_bin(row, bin, shared, [&](uint64_t key, Mass mass) {
    const int slot = atomicAdd(&shared.gathered, 1);
    shared.keys[slot] = key;
    shared.key_weights[slot] = mass.weight;
  });
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const uint64_t key = shared.keys[i];
    Mass reached = shared.before;
    for (int j = 0; j < count; ++j) {
      if (shared.keys[j] <= key) reached.add({shared.key_weights[j], 1});
    }
    const uint64_t own = by_count ? 1 : shared.key_weights[i];
    if (reached.measure(by_count) >= target && reached.measure(by_count) - own < target) {
      shared.key = key;
      shared.reached = reached;
    }
  }
  __syncthreads();
}

__device__ int draw(const float* logits, int vocab, const SampleRow& params, uint64_t first,
                    const Bins& bins, Shared& shared) {
  if (params.temperature == 0) return id_of(first);
  const Row row = row_of(logits, vocab, params, first);
  if (is_counted_before(params)) {
    take_bins(bins, shared);
  } else {
    fill_bins(row, 0, shared);
  }
  uint64_t total = shared.bins.all.weight;
  if (total == 0) return id_of(first);  // logits that are not numbers
  if (params.top_k > 0 && params.top_k < int(shared.bins.all.count)) {
    find_cut(row, uint64_t(params.top_k), true, shared);
    total = shared.reached.weight;
  }
  if (params.top_p < 1) {
    const double wanted = ceil(double(params.top_p) * double(total));
    find_cut(row, min(max(uint64_t(wanted), uint64_t(1)), total), false, shared);
    total = shared.reached.weight;
  }
  const uint64_t passed = uint64_t(double(params.uniform) * double(total));
  find_cut(row, min(passed + 1, total), false, shared);
  return id_of(shared.key);
}

// log(sum of e^logit).
__device__ float log_sum_exp(const float* logits, int vocab, float best, Shared& shared) {
  float sum = 0;
  for_each_token(logits, vocab, [&](float logit, int) { sum += expf(logit - best); });
  __syncthreads();
  return best + logf(block_sum(sum, shared.warp_values));
}

// Ids and log-probabilities of the n best tokens.
__device__ void best_tokens(const Row& row, int n, float log_sum, int32_t* ids, float* logprobs,
                            Shared& shared) {
  fill_bins(row, 0, shared);
  n = min(n, int(shared.bins.all.count));
  if (n == 0) return;
  find_cut(row, uint64_t(n), true, shared);
  const uint64_t last = shared.key;
  __syncthreads();
  if (threadIdx.x == 0) shared.gathered = 0;
  __syncthreads();
  for_each_token(row.logits, row.vocab, [&](float logit, int id) {
    const uint64_t key = key_of(logit, id);
    if (key <= last) shared.keys[atomicAdd(&shared.gathered, 1)] = key;
  });
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += kThreads) {
    int rank = 0;
    for (int j = 0; j < n; ++j) rank += shared.keys[j] < shared.keys[i];
    const int id = id_of(shared.keys[i]);
    ids[rank] = id;
    logprobs[rank] = row.logits[id] - log_sum;
  }
}

// From host memory.
__device__ __forceinline__ LogitEdit edit_at(const LogitEdit* edit) {
  return {.token = __ldcv(&edit->token),
          .repetition = __ldcv(&edit->repetition),
          .offset = __ldcv(&edit->offset)};
}

// Applies the row's edits and keeps in `before` what the logits were.
__device__ void apply_edits(float* logits, const SampleRow& params, const LogitEdit* edits,
                            float* before) {
  for (int i = threadIdx.x; i < params.num_edits; i += kThreads) {
    const LogitEdit edit = edit_at(edits + params.first_edit + i);
    float& logit = logits[edit.token];
    before[params.first_edit + i] = logit;
    logit = (logit > 0 ? logit / edit.repetition : logit * edit.repetition) + edit.offset;
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads)
    sample_kernel(Matrix<float> logits, const SampleRow* rows, const LogitEdit* edits,
                  float* before, const uint64_t* part_keys, const Bins* bins,
                  Matrix<int32_t> tokens, Matrix<float> logprobs, Matrix<int32_t> top_ids) {
  __shared__ Shared shared;
  __shared__ float token_logit;
  let_successor_begin();
  wait_for_predecessor();
  const int64_t r = blockIdx.x;
  const SampleRow& params = rows[r];  // a copy would have its place in local memory
  float* row = logits.row(r);
  const int vocab = int(logits.cols);
  uint64_t first = first_of_parts(part_keys, r, vocab);
  float log_sum = 0;
  if (params.num_logprobs >= 0) {
    const float best = row[id_of(first)];
    log_sum = log_sum_exp(row, vocab, best, shared);
    const int n = min(params.num_logprobs, vocab);
    if (n > 0) {
      best_tokens({row, vocab, best, 1.0f, 0.0f}, n, log_sum, top_ids.row(r), logprobs.row(r) + 1,
                  shared);
      __syncthreads();
    }
  }
  int token = params.target;
  if (token < 0) {
    apply_edits(row, params, edits, before);
    if (params.num_edits > 0) first = or_token_0(first_key_of(row, 0, vocab, shared.warp_keys));
    token = draw(row, vocab, params, first, bins[r], shared);
  }
  if (threadIdx.x == 0) *tokens.row(r) = token;
  if (params.num_logprobs < 0) return;
  if (threadIdx.x == 0) token_logit = row[token];
  __syncthreads();
  for (int i = threadIdx.x; params.target < 0 && i < params.num_edits; i += kThreads) {
    const int edit = params.first_edit + i;
    if (edit_at(edits + edit).token == token) token_logit = before[edit];
  }
  __syncthreads();
  if (threadIdx.x == 0) *logprobs.row(r) = token_logit - log_sum;
}

}  // namespace

void Sampler::run(const Context& context, Tensor logits, const SampleBatch& batch,
                  SampleResult out) {
  const size_t rows_bytes = batch.rows.size() * sizeof(SampleRow);
  const size_t edits_bytes = batch.edits.size() * sizeof(LogitEdit);
  CHECK(logits.rows >= int64_t(batch.rows.size()), "%ld rows of logits", long(logits.rows));
  CHECK(batch.max_logprobs <= kGathered, "%d log-probabilities", batch.max_logprobs);
  if (batch.rows.empty()) return;
  const unsigned rows = unsigned(batch.rows.size());
  const size_t keys = size_t(rows) * size_t(first_parts(logits.cols));
  auto* bins = static_cast<Bins*>(context.workspace.fit(rows * (sizeof(Bins) + sizeof(SampleRow)) +
                                                        keys * sizeof(uint64_t) +
                                                        batch.edits.size() * sizeof(float)));
  auto* part_keys = reinterpret_cast<uint64_t*>(bins + rows);
  auto* params = reinterpret_cast<SampleRow*>(part_keys + keys);
  auto* before = reinterpret_cast<float*>(params + rows);
  const Matrix<float> values(logits);
  const Matrix<int32_t> tokens(out.tokens);
  const Grid by_first_parts{.blocks = {unsigned(first_parts(logits.cols)), rows},
                            .threads = kFirstThreads};
  if (std::ranges::all_of(batch.rows, takes_first)) {
    launch(context, by_first_parts, first_keys_kernel, values, part_keys, bins, nullptr, nullptr);
    launch(context, {.blocks = {rows}, .threads = kWarp}, take_first_kernel, part_keys,
           int(logits.cols), tokens);
    return;
  }
  char* const host = static_cast<char*>(staging_.next(rows_bytes + edits_bytes));
  std::memcpy(host, batch.rows.data(), rows_bytes);
  if (edits_bytes > 0) std::memcpy(host + rows_bytes, batch.edits.data(), edits_bytes);
  launch(context, by_first_parts, first_keys_kernel, values, part_keys, bins,
         reinterpret_cast<const SampleRow*>(host), params);
  if (std::ranges::any_of(batch.rows, is_counted_before)) {
    launch(context, {.blocks = {blocks_for(logits.cols, kPart), rows}, .threads = kThreads},
           count_kernel, values, params, part_keys, bins);
  }
  launch(context, {.blocks = {rows}, .threads = kThreads}, sample_kernel, values, params,
         reinterpret_cast<const LogitEdit*>(host + rows_bytes), before, part_keys, bins, tokens,
         Matrix<float>(out.logprobs), Matrix<int32_t>(out.top_ids));
  staging_.keep_until_here(context.stream);
}

}  // namespace nibble::cuda
