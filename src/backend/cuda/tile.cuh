// What kernels share above single instructions: values of either activation dtype, reductions over
// a warp and a block in a fixed order, a matrix as kernels see it. Device code.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "base/tensor.h"

namespace nibble::cuda {

using bf16 = __nv_bfloat16;

inline constexpr int kWarp = 32;

// A tensor as a kernel's argument.
template <typename T>
struct Matrix {
  T* data = nullptr;
  int64_t rows = 0, cols = 0, stride = 0;

  Matrix() = default;
  explicit Matrix(const Tensor& t)
      : data(static_cast<T*>(t.data)), rows(t.rows), cols(t.cols), stride(t.stride) {}

  __device__ __forceinline__ T* row(int64_t r) const { return data + r * stride; }
};

__device__ __forceinline__ float to_float(float value) {
  return value;
}
__device__ __forceinline__ float to_float(bf16 value) {
  return __bfloat162float(value);
}

// Rounds to nearest even.
template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float value) {
  return __float2bfloat16_rn(value);
}

__device__ __forceinline__ float silu(float x) {
  return x / (1.0f + expf(-x));
}

// The sum over a warp's lanes, the same in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

// visit(first + i, sum of values[i] over lanes that differ in the bits from kOffset down), each i
// by one lane, the sums as warp_sum() has them: at each offset a lane keeps half of the values, as
// long as they are even in number.
template <int kOffset = kWarp / 2, int kCount, typename Visit>
__device__ __forceinline__ void for_each_warp_sum(const float (&values)[kCount], Visit visit,
                                                  int first = 0) {
  constexpr unsigned kAll = 0xffffffffu;
  if constexpr (kOffset == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) visit(first + i, values[i]);
  } else {
    constexpr int kKept = kCount % 2 == 0 ? kCount / 2 : kCount;
    const bool upper = (threadIdx.x & unsigned(kOffset)) != 0;
    float sums[kKept];
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      const float low = values[i], high = values[kCount - kKept + i];
      sums[i] = (upper ? high : low) + __shfl_xor_sync(kAll, upper ? low : high, kOffset);
    }
    if constexpr (kKept < kCount) {
      for_each_warp_sum<kOffset / 2>(sums, visit, first + (upper ? kKept : 0));
    } else {
      for_each_warp_sum<kOffset / 2>(
          sums,
          [&](int i, float sum) {
            if (!upper) visit(i, sum);
          },
          first);
    }
  }
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}

// The sum over a block of whole warps, the same in every thread. `shared` has room for 32 values
// and may be used again after a __syncthreads().
__device__ __forceinline__ float block_sum(float value, float* shared) {
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  float sum = 0;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) sum += shared[w];
  return sum;
}

}  // namespace nibble::cuda
