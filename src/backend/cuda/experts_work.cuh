// What experts does with its products, for few rows and for many. Device code.
//
// A pair is a row and one of its slots: pair = row * top_k + slot.
#pragma once

#include <algorithm>

#include "backend/cuda/fragments.cuh"

namespace nibble::cuda {

// A row's weights in the card's memory.
__device__ __forceinline__ auto stored_weights(const float* weights) {
  return [weights](int k) { return __ldcg(weights + k); };
}

// The experts that every row takes: a matrix' last.
struct SharedExperts {
  const uint8_t* data = nullptr;
  uint32_t bytes = 0;  // no more than any L2 holds

  SharedExperts(const PackedMatrices& w, int num_experts, int num_shared)
      : data(w.data + size_t(num_experts - num_shared) * w.tiles * w.tile_bytes),
        bytes(uint32_t(std::min(size_t(num_shared) * w.tiles * w.tile_bytes, size_t{1} << 30))) {}

  // By one thread of each block, before the routing is known: a part of them, on its way to L2.
  __device__ __forceinline__ void bring_to_cache() const {
#if __CUDA_ARCH__ >= 900
    const uint32_t part = (bytes / gridDim.x / 16 + 1) * 16, first = part * blockIdx.x;
    if (first < bytes) prefetch_bulk(data + first, min(part, bytes - first));
#endif
  }
};

// The sum over a row's slots, in their order. products: of slot 0, `stride` apart.
template <typename WeightOf>
__device__ __forceinline__ float sum_of_slots(const WeightOf& weight_of, const float* products,
                                              int64_t stride, int top_k) {
  float sum = 0;
  for (int k = 0; k < top_k; ++k) sum = fmaf(weight_of(k), products[k * stride], sum);
  return sum;
}

}  // namespace nibble::cuda
