// What experts does with its products, for few rows and for many. Device code.
//
// A pair is a row and one of its slots: pair = row * top_k + slot.
#pragma once

#include "backend/cuda/fragments.cuh"

namespace nibble::cuda {

// The sum over a row's slots, in their order. products: of slot 0, `stride` apart.
__device__ __forceinline__ float sum_of_slots(const float* weights, const float* products,
                                              int64_t stride, int top_k) {
  float sum = 0;
  for (int k = 0; k < top_k; ++k) sum = fmaf(__ldcg(weights + k), products[k * stride], sum);
  return sum;
}

}  // namespace nibble::cuda
