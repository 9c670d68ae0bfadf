// The choice of a row's experts from their scores, by one warp: by the kernel that needs it, where
// it is one row's, since a hand-over costs more than choosing again in every block. Device code.
#pragma once

#include "backend/backend.h"
#include "backend/cuda/tile.cuh"

namespace nibble::cuda {

inline constexpr int kMaxExperts = 256;

// A row's scores are `stride` apart.
struct Choosing {
  const float* scores = nullptr;  // sigmoid(x router^T)
  int stride = 0;
  const float* bias = nullptr;
  RouterShape shape{};
};

// A lane's share of the bias, of experts lane, lane + 32, ...: to be fetched before the scores are
// there.
struct LaneBias {
  float v[kMaxExperts / kWarp];

  __device__ __forceinline__ explicit LaneBias(const Choosing& choosing) {
#pragma unroll
    for (int i = 0; i < kMaxExperts / kWarp; ++i) {
      const int e = int(threadIdx.x) % kWarp + i * kWarp;
      v[i] = e < choosing.shape.num_experts ? choosing.bias[e] : 0.0f;
    }
  }
};

struct Candidate {
  float value;
  int id;
  float score;
};

// Whether a is chosen before b: the larger value, of equals the lower id. NaN never is.
__device__ __forceinline__ bool comes_before(const Candidate& a, const Candidate& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// A warp's: the first of the lanes' candidates, in every lane.
__device__ __forceinline__ Candidate first_of_warp(Candidate mine) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const Candidate other{__shfl_xor_sync(0xffffffffu, mine.value, offset),
                          __shfl_xor_sync(0xffffffffu, mine.id, offset),
                          __shfl_xor_sync(0xffffffffu, mine.score, offset)};
    if (comes_before(other, mine)) mine = other;
  }
  return mine;
}

// backend.h's route for row `row` of the scores.
__device__ __forceinline__ void choose(const Choosing& choosing, const LaneBias& bias, int row,
                                       int32_t* experts, float* weights) {
  constexpr int kMine = kMaxExperts / kWarp;
  const RouterShape& shape = choosing.shape;
  const int lane = int(threadIdx.x) % kWarp;
  float scores[kMine], values[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int e = lane + i * kWarp;
    scores[i] = e < shape.num_experts ? choosing.scores[row * choosing.stride + e] : NAN;
    values[i] = scores[i] + bias.v[i];
  }
  float total = 0;
  for (int k = 0; k < shape.top_k; ++k) {
    Candidate best{-INFINITY, kMaxExperts, NAN};
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const Candidate candidate{values[i], lane + i * kWarp, scores[i]};
      if (comes_before(candidate, best)) best = candidate;
    }
    best = first_of_warp(best);
    // Scores that are not numbers choose nothing: expert k keeps later reads within bounds.
    const int chosen = best.id < shape.num_experts ? best.id : k;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      if (chosen == lane + i * kWarp) values[i] = NAN;
    }
    total += best.score;
    if (lane == k % kWarp) experts[k] = chosen, weights[k] = best.score;
  }
  const float scale = shape.scaling / (shape.normalize ? total + 1e-20f : 1.0f);
  for (int k = lane; k < shape.top_k; k += kWarp) weights[k] *= scale;
  for (int s = lane; s < shape.num_shared; s += kWarp) {
    experts[shape.top_k + s] = shape.num_experts + s;
    weights[shape.top_k + s] = 1;
  }
}

}  // namespace nibble::cuda
