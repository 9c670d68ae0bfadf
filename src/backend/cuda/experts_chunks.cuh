// The pairs of several rows grouped by expert, each block for itself: a hand-over costs more than
// that. Device code of experts.
#pragma once

#include "backend/cuda/experts_work.cuh"
#include "backend/cuda/stream.cuh"
#include "base/tensor.h"

namespace nibble::cuda {

__host__ __device__ inline int max_chunks(int pairs, int num_experts) {
  return min(pairs, num_experts + pairs / kRowGroup);
}

// Which experts rows take.
struct RoutedRows {
  Matrix<int32_t> experts;
  Matrix<float> weights;
  int num_experts = 0;

  __device__ int slots() const { return int(experts.cols); }
  __device__ int pairs() const { return int(experts.rows) * slots(); }
};

// Up to kRowGroup pairs of one expert, pairs rising; chunks by expert, rising. In shared memory.
struct Chunks {
  int* ints = nullptr;  // how many; then experts, numbers of pairs, pairs
  int max = 0;

  __device__ int& count() const { return ints[0]; }
  __device__ int& expert(int chunk) const { return ints[1 + chunk]; }
  __device__ int& columns(int chunk) const { return ints[1 + max + chunk]; }
  // row * 2^16 + pair
  __device__ int& row_and_pair(int chunk, int n) const {
    return ints[1 + 2 * max + chunk * kRowGroup + n];
  }
  __device__ int pair(int chunk, int n) const { return row_and_pair(chunk, n) & 0xffff; }
  __device__ int row(int chunk, int n) const { return row_and_pair(chunk, n) >> 16; }
  // Whether its expert has no other.
  __device__ bool is_alone(int chunk) const {
    return (chunk == 0 || expert(chunk - 1) != expert(chunk)) &&
           (chunk + 1 == count() || expert(chunk + 1) != expert(chunk));
  }
  __device__ int* end() const { return ints + 1 + max * (2 + kRowGroup); }
};

// Of the chunks and, behind them, of what making them takes.
__host__ __device__ inline int chunk_ints(int pairs, int num_experts) {
  const int lists = max_chunks(pairs, num_experts) * (2 + kRowGroup);
  const int groups = (pairs + kWarp - 1) / kWarp;
  return (1 + lists + 2 * pairs + (groups + 2) * num_experts + 3) / 4 * 4;
}

// Of at most kRowGroup rows, each of different experts: an expert is one chunk. By one warp, which
// holds all pairs.
inline constexpr int kFewPairs = 2 * kWarp;
__device__ inline void make_few_chunks(const RoutedRows& routed, const Chunks& chunks) {
  constexpr unsigned kAll = 0xffffffffu;
  const int slots = routed.slots(), pairs = routed.pairs();
  const int lane = int(threadIdx.x) % kWarp;
  int experts[2], own[2] = {}, count = 0;  // own: the pair's chunk
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int pair = i * kWarp + lane;
    experts[i] = pair < pairs ? __ldcg(routed.experts.row(pair / slots) + pair % slots) : -1;
  }
  // A chunk's number is how many experts before its own are taken.
  for (int first = 0; first < routed.num_experts; first += kWarp) {
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned place = unsigned(experts[i] - first);
      if (place < unsigned(kWarp)) bits |= 1u << place;
    }
    const unsigned taken = __reduce_or_sync(kAll, bits);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int before = experts[i] - first;
      if (before > 0) own[i] += __popc(before < kWarp ? taken & ((1u << before) - 1) : taken);
    }
    count += __popc(taken);
  }
  for (int c = lane; c < count; c += kWarp) chunks.columns(c) = 0;
  if (lane == 0) chunks.count() = count;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool is_pair = experts[i] >= 0;
    const unsigned same = __match_any_sync(kAll, experts[i]);
    const int rank = __popc(same & ((1u << lane) - 1));
    const int earlier = is_pair ? chunks.columns(own[i]) : 0;
    __syncwarp();
    if (is_pair) {
      const int pair = i * kWarp + lane;
      chunks.row_and_pair(own[i], earlier + rank) = pair / slots << 16 | pair;
      if (rank == 0) {
        chunks.expert(own[i]) = experts[i];
        chunks.columns(own[i]) = earlier + __popc(same);
      }
    }
    __syncwarp();
  }
}

// Of any rows, by all threads. Pairs are counted by groups of a warp's, and placed behind those of
// earlier groups.
__device__ inline Chunks make_many_chunks(const RoutedRows& routed, int* shared) {
  const int slots = routed.slots(), pairs = routed.pairs(), num_experts = routed.num_experts;
  const int lane = int(threadIdx.x) % kWarp, threads = int(blockDim.x);
  const Chunks chunks{shared, max_chunks(pairs, num_experts)};
  const int groups = (pairs + kWarp - 1) / kWarp;
  int* ids = chunks.end();
  int* ranks = ids + pairs;     // in the group, of the expert's
  int* counts = ranks + pairs;  // [groups, experts]: then of earlier groups
  int* totals = counts + groups * num_experts;
  int* bases = totals + num_experts;  // its first chunk
  for (int i = int(threadIdx.x); i < groups * num_experts; i += threads) counts[i] = 0;
  __syncthreads();
  for (int i = int(threadIdx.x); i < groups * kWarp; i += threads) {
    const int expert = i < pairs ? __ldcg(routed.experts.row(i / slots) + i % slots) : -1;
    const unsigned same = __match_any_sync(0xffffffffu, expert);
    if (expert < 0) continue;
    const int rank = __popc(same & ((1u << lane) - 1));
    ids[i] = expert, ranks[i] = rank;
    if (rank == 0) counts[i / kWarp * num_experts + expert] = __popc(same);
  }
  __syncthreads();
  for (int e = int(threadIdx.x); e < num_experts; e += threads) {
    int total = 0;
    for (int g = 0; g < groups; ++g) {
      int& count = counts[g * num_experts + e];
      const int own = count;
      count = total, total += own;
    }
    totals[e] = total;
  }
  __syncthreads();
  if (int(threadIdx.x) < kWarp) {
    int total = 0;
    for (int first = 0; first < num_experts; first += kWarp) {
      const int e = first + lane;
      const int own = e < num_experts ? (totals[e] + kRowGroup - 1) / kRowGroup : 0;
      int sum = own;  // of this lane and those before it
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const int lower = __shfl_up_sync(0xffffffffu, sum, offset);
        if (lane >= offset) sum += lower;
      }
      if (e < num_experts) bases[e] = total + sum - own;
      total += __shfl_sync(0xffffffffu, sum, kWarp - 1);
    }
    if (lane == 0) chunks.count() = total;
  }
  __syncthreads();
  for (int e = int(threadIdx.x); e < num_experts; e += threads) {
    for (int c = 0; c * kRowGroup < totals[e]; ++c) {
      chunks.expert(bases[e] + c) = e;
      chunks.columns(bases[e] + c) = min(kRowGroup, totals[e] - c * kRowGroup);
    }
  }
  for (int i = int(threadIdx.x); i < pairs; i += threads) {
    const int place = counts[i / kWarp * num_experts + ids[i]] + ranks[i];
    chunks.row_and_pair(bases[ids[i]] + place / kRowGroup, place % kRowGroup) = i / slots << 16 | i;
  }
  __syncthreads();
  return chunks;
}

// By all threads: the faster way of the two.
__device__ __forceinline__ Chunks make_chunks(const RoutedRows& routed, int* shared) {
  const int pairs = routed.pairs();
  if (int(routed.experts.rows) > kRowGroup || pairs > kFewPairs) {
    return make_many_chunks(routed, shared);
  }
  const Chunks chunks{shared, max_chunks(pairs, routed.num_experts)};
  if (int(threadIdx.x) < kWarp) make_few_chunks(routed, chunks);
  __syncthreads();
  return chunks;
}

// A block's share of a line of items: as many as others have.
struct Range {
  int first, count;
};

}  // namespace nibble::cuda
