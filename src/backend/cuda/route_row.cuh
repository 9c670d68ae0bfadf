// The norm and the choice of experts of one row, made by every cluster of blocks for itself in the
// kernel that takes the experts: that takes less time than handing the choice over. The blocks of a
// cluster score some experts each, tell each other, and choose. Device code.
#pragma once

#include "backend/cuda/bulk.cuh"
#include "backend/cuda/choice.cuh"
#include "backend/cuda/norm_row.cuh"
#include "backend/cuda/packed.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/route.h"

namespace nibble::cuda {

inline constexpr int kRouteCluster = 8;   // blocks
inline constexpr int kRouteExperts = 64;  // at most
inline constexpr int kRouteEach = 4;      // experts of a thread, at most
inline constexpr int kRouteSlots = 16;    // at most

// Passed to kernels by value. The norm's x and the router are BF16 and F32 of whole steps, see
// columns.cuh; the threads of a block are whole times as many as a row has steps of warps.
struct RowRoute {
  SharedNorm<float> norm;
  const bf16* router = nullptr;  // [experts, columns]
  const float* bias = nullptr;
  RouterShape shape{};
  int32_t* experts = nullptr;  // the choice, as the first block leaves it
  float* weights = nullptr;

  explicit RowRoute(const NormedRoute& route)
      : norm(route.norm),
        router(static_cast<const bf16*>(route.router->rows)),
        bias(route.bias),
        shape(route.shape),
        experts(static_cast<int32_t*>(route.out.experts.data)),
        weights(static_cast<float*>(route.out.weights.data)) {}
};

// A block's shared memory.
struct RowRouteMemory {
  uint64_t scored;  // a barrier: the scores have come
  float scores[kRouteExperts], bias[kRouteExperts];
  alignas(16) float added[RowColumns::kColumns];
  float sums[RowColumns::kSteps * kWarp];
  alignas(16) bf16 inputs[RowColumns::kColumns];
  int32_t experts[kRouteSlots];
  float chosen_scores[kRouteSlots];
};

// Shared memory of a warp for its part of the router, 16 bytes of each lane an expert, then for its
// part of the sums; and for its lanes' gains.
inline constexpr int kRouterBytes = kRouteEach * kWarp * int(sizeof(uint4));
inline constexpr int kRouteSpareBytes = kRouterBytes + kStepColumns * int(sizeof(float));

// choice.cuh's choose() by all warps of a block: an expert's rank is the number of those before it.
// Then the experts are in memory.experts; an expert to which none was chosen is its slot.
__device__ __forceinline__ void choose_in_block(const RowRoute& route, RowRouteMemory& memory) {
  const RouterShape& shape = route.shape;
  const int lane = int(threadIdx.x) % kWarp, warps = int(blockDim.x) / kWarp;
  static_assert(kRouteExperts == 2 * kWarp);
  uint32_t values[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int e = i * kWarp + lane;
    values[i] = e < shape.num_experts ? rising_bits(memory.scores[e] + memory.bias[e]) : 0;
  }
  constexpr int kAtOnce = 4;
#pragma unroll 1
  for (int own = int(threadIdx.x) / kWarp; own < shape.num_experts; own += kAtOnce * warps) {
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int e = own + k * warps;
      if (e >= shape.num_experts) break;
      const uint32_t value = __shfl_sync(0xffffffffu, e < kWarp ? values[0] : values[1], e % kWarp);
      int rank = 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // Those before it are greater, or equal with a lower id.
        const uint32_t least = i * kWarp + lane < e ? value : value + 1;
        rank += __popc(__ballot_sync(0xffffffffu, values[i] >= least));
      }
      if (lane == 0 && value != 0 && rank < shape.top_k) {
        memory.experts[rank] = e, memory.chosen_scores[rank] = memory.scores[e];
      }
    }
  }
  route.norm.meet(memory.added);
}

// Waits for the predecessor; then the norm's output is in memory.inputs, and the choice, shared
// experts last, in memory.experts. rows: kRouteSpareBytes of this warp, free afterwards; those of
// the warps lie rows_pitch apart.
__device__ __forceinline__ void route_row(RowRoute& route, RowRouteMemory& memory, uint8_t* rows,
                                          int rows_pitch) {
#if __CUDA_ARCH__ >= 900
  const int cols = int(route.norm.rows.x.cols), steps = cols / kStepColumns;
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int group = warp / steps, groups = int(blockDim.x) / kWarp / steps, step = warp % steps;
  const int column = step * kStepColumns + lane * kLaneColumns;
  const int num_experts = route.shape.num_experts;
  const int each = (num_experts + kRouteCluster - 1) / kRouteCluster;
  const int first = int(blockIdx.x % kRouteCluster) * each;
  const int count = group < groups ? min(each, num_experts - first) : 0;
  const StagedGains gains{reinterpret_cast<float*>(rows + kRouterBytes) + lane * kLaneColumns};
  rows += lane * sizeof(uint4);
  for (int e = group, i = 0; e < count; e += groups, i += kWarp * sizeof(uint4)) {
    copy_async_16(rows + i, route.router + int64_t(first + e) * cols + column);
  }
  if (int(threadIdx.x) * kLaneColumns < cols) {
    for (int i = 0; i < kLaneColumns; i += 4) {
      copy_async_16(gains.at + i, route.norm.rows.gain + threadIdx.x * kLaneColumns + i);
    }
  }
  if (int(threadIdx.x) < num_experts) {
    copy_async_4(memory.bias + threadIdx.x, route.bias + threadIdx.x);
  }
  commit_copies();
  const int top_k = route.shape.top_k, slots = top_k + route.shape.num_shared;
  if (int(threadIdx.x) < slots) {
    const int slot = int(threadIdx.x);
    memory.experts[slot] = slot < top_k ? slot : num_experts + slot - top_k;
    memory.chosen_scores[slot] = NAN;
  }
  // Where the parts of an expert's sum lie: of the warp's first one, known before the wait.
  const auto parts_of = [&](int e) {
    return (e % groups * steps - warp) * rows_pitch + e / groups * (kWarp * int(sizeof(uint4)));
  };
  int parts = parts_of(warp);
  compute_now(parts);
  if (threadIdx.x == 0) {
    start_barrier(&memory.scored, 1);
    publish_barriers();
    arrive_expecting(&memory.scored, num_experts * int(sizeof(float)));
  }
  arrive_at_cluster();
  wait_for_predecessor();
  wait_for_copies<0>();
  route.norm.make(gains, memory.sums, memory.added, memory.inputs);
  Columns<bf16> inputs;
  inputs.load(memory.inputs + column);
  float v[kLaneColumns];
  unpack(inputs, v);
  for (int e = group, i = 0; e < count; e += groups, i += kWarp * sizeof(uint4)) {
    Columns<bf16> columns;
    columns.load(reinterpret_cast<const bf16*>(rows + i));
    float row[kLaneColumns];
    unpack(columns, row);
    *reinterpret_cast<float*>(rows + i) = products(v, row);
  }
  wait_for_cluster();  // the others are there
  __syncthreads();
  for (int e = warp; e < min(each, num_experts - first);) {
    const uint8_t* from = rows + parts;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < RowColumns::kSteps; ++j) {
      if (j < steps) sum += *reinterpret_cast<const float*>(from + j * rows_pitch);
    }
    const float score = sigmoid(warp_sum(sum));
    if (lane < kRouteCluster) {
      send_to_block(reinterpret_cast<uint32_t*>(memory.scores + first + e), &memory.scored,
                    unsigned(lane), __float_as_uint(score));
    }
    e += int(blockDim.x) / kWarp;
    if (e < each) parts = parts_of(e);
  }
  wait_for_phase(&memory.scored, 0);
  choose_in_block(route, memory);
  if (blockIdx.x > 0 || warp > 0) return;
  float total = 0;
  for (int k = 0; k < top_k; ++k) total += memory.chosen_scores[k];
  const float scale = weight_scale(route.shape, total);
  if (lane < slots) {
    route.experts[lane] = memory.experts[lane];
    route.weights[lane] = lane < top_k ? memory.chosen_scores[lane] * scale : 1;
  }
#endif
}

}  // namespace nibble::cuda
