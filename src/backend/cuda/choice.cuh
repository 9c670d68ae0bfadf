// The choice of a row's experts from their scores, by one warp: by the kernel that needs it, where
// it is one row's, since a hand-over costs more than choosing again in every block. Device code.
#pragma once

#include "backend/backend.h"
#include "backend/cuda/tile.cuh"

namespace nibble::cuda {

inline constexpr int kMaxExperts = 256;

__device__ __forceinline__ float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

// A row's scores are `stride` apart.
struct Choosing {
  const float* scores = nullptr;  // sigmoid(x router^T)
  int stride = 0;
  const float* bias = nullptr;
  RouterShape shape{};
};

// A lane's share of the bias, of kEach experts lane, lane + 32, ...: to be fetched before the
// scores are there.
template <int kEach>
struct LaneBias {
  float v[kEach];

  __device__ __forceinline__ explicit LaneBias(const Choosing& choosing) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int e = int(threadIdx.x) % kWarp + i * kWarp;
      v[i] = e < choosing.shape.num_experts ? choosing.bias[e] : 0.0f;
    }
  }
};

// Rises with the value; 0 for what is not a number.
__device__ __forceinline__ uint32_t rising_bits(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 becomes 0
  return value != value ? 0 : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Of the weights of experts whose scores have this sum.
__device__ __forceinline__ float weight_scale(const RouterShape& shape, float total) {
  return shape.scaling / (shape.normalize ? total + 1e-20f : 1.0f);
}

// backend.h's route for row `row` of the scores, of at most kWarp kEach experts; top_k at most
// kWarp. Of equals the lowest id is chosen, NaN never.
template <int kEach>
__device__ __forceinline__ void choose(const Choosing& choosing, const LaneBias<kEach>& bias,
                                       int row, int32_t* experts, float* weights) {
  const RouterShape& shape = choosing.shape;
  const int lane = int(threadIdx.x) % kWarp;
  float scores[kEach];
  uint32_t values[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int e = lane + i * kWarp;
    scores[i] = e < shape.num_experts ? choosing.scores[row * choosing.stride + e] : NAN;
    values[i] = rising_bits(scores[i] + bias.v[i]);
  }
  float total = 0, weight = 0;
  int expert = 0;
  for (int k = 0; k < shape.top_k; ++k) {
    uint32_t best = 0;
    int id = kMaxExperts;
    float score = NAN;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (values[i] > best) best = values[i], id = lane + i * kWarp, score = scores[i];
    }
    const uint32_t top = __reduce_max_sync(0xffffffffu, best);
    id = __reduce_min_sync(0xffffffffu, best == top ? id : kMaxExperts);
    // Scores that are not numbers choose nothing: expert k keeps later reads within bounds.
    const int chosen = id < shape.num_experts ? id : k;
    score = __shfl_sync(0xffffffffu, score, chosen % kWarp);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (chosen == lane + i * kWarp) values[i] = 0;
    }
    total += score;
    if (lane == k) expert = chosen, weight = score;
  }
  const float scale = weight_scale(shape, total);
  if (lane < shape.top_k) experts[lane] = expert, weights[lane] = weight * scale;
  for (int s = lane; s < shape.num_shared; s += kWarp) {
    experts[shape.top_k + s] = shape.num_experts + s;
    weights[shape.top_k + s] = 1;
  }
}

}  // namespace nibble::cuda
