// What experts does with its products, for few rows and for many. Device code.
//
// A pair is a row and one of its slots: pair = row * top_k + slot.
#pragma once

#include "backend/cuda/fragments.cuh"

namespace nibble::cuda {

// A row's weights in the card's memory.
__device__ __forceinline__ auto stored_weights(const float* weights) {
  return [weights](int k) { return __ldcg(weights + k); };
}

// The sum over a row's slots, in their order. products: of slot 0, `stride` apart.
template <typename WeightOf>
__device__ __forceinline__ float sum_of_slots(const WeightOf& weight_of, const float* products,
                                              int64_t stride, int top_k) {
  float sum = 0;
  for (int k = 0; k < top_k; ++k) sum = fmaf(weight_of(k), products[k * stride], sum);
  return sum;
}

}  // namespace nibble::cuda
