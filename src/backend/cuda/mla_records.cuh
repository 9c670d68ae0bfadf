// Cache records and rows of kv_b as tensor cores take them. Both come packed, and both are needed
// in two directions: along a row (keys; kv_b's value half) and across rows (values; kv_b's key
// half). The order of K inside a product is free, so a lane takes what lies together in memory:
//
//   along a row   lane (g, t) takes 16 neighbours of row g: of each 64 columns those from 16 t on
//   across rows   lane (g, t) takes 8 neighbours, from 8 g on, of rows t, t + 4, t + 8, t + 12 of
//                 records, 4 t .. 4 t + 3 of kv_b
//
// with g = lane / 4, t = lane % 4. Values become BF16 (kBF16) or FP16 (all packed formats), exact
// up to the power of two kValueScale. Device code.
#pragma once

#include "backend/cuda/ptx.cuh"
#include "backend/cuda/tile.cuh"
#include "backend/kv_cache.h"

namespace nibble::cuda {

inline constexpr int kNope = 192, kRope = 64, kQuery = kNope + kRope, kValue = 256, kLatent = 512;
inline constexpr int kRecord = kLatent + kRope;
inline constexpr int kUpRows = kNope + kValue;  // of kv_b, a head

// A layer's cache as kernels see it.
struct Records {
  uint8_t* data = nullptr;
  int64_t page_bytes = 0;
  int page_size = 0, value_bytes = 0, scale_bytes = 0;
  uint32_t page_units = 0, value_units = 0;  // of 16 bytes; not for kF32

  Records() = default;
  explicit Records(const KvLayer& cache)
      : data(static_cast<uint8_t*>(cache.data)),
        page_bytes(kv_page_bytes(cache)),
        page_size(cache.page_size),
        value_bytes(int(kv_value_bytes(cache))),
        scale_bytes(int(kv_scale_bytes(cache))),
        page_units(uint32_t(page_bytes / 16)),
        value_units(uint32_t(value_bytes / 16)) {}

  __device__ __forceinline__ uint8_t* values(int64_t page, int slot) const {
    return data + page * page_bytes + int64_t(slot) * value_bytes;
  }
  __device__ __forceinline__ uint8_t* scales(int64_t page, int slot) const {
    return data + page * page_bytes + int64_t(page_size) * value_bytes + slot * scale_bytes;
  }
};

__device__ __forceinline__ const Segment& segment_of(const StepView& step, int row) {
  return step.segments[step.is_decode ? row : step.row_segment[row]];
}

__device__ __forceinline__ uint32_t pack(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(fminf(fmaxf(low, -65504.0f), 65504.0f),
                                         fminf(fmaxf(high, -65504.0f), 65504.0f));
  return reinterpret_cast<const uint32_t&>(pair);
}
// For what cannot be large.
__device__ __forceinline__ uint32_t pack_small(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ __forceinline__ uint32_t pack(float low, float high, bf16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ __forceinline__ float2 unpack(uint32_t pair, __half) {
  return __half22float2(reinterpret_cast<const __half2&>(pair));
}
__device__ __forceinline__ float2 unpack(uint32_t pair, bf16) {
  return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(pair));
}

__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2], __half) {
  multiply_f16(c, a, b);
}
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2], bf16) {
  multiply_bf16(c, a, b);
}

// 2^x, to 2^-22 of it; 0 for -infinity.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ uint32_t multiply_halves(uint32_t a, uint32_t b) {
  const __half2 product =
      __hmul2(reinterpret_cast<const __half2&>(a), reinterpret_cast<const __half2&>(b));
  return reinterpret_cast<const uint32_t&>(product);
}

// INT8 plus 128 in a low byte under 0x64 is 1024 + it, in FP16.
__device__ __forceinline__ uint32_t int8_pair(uint32_t biased, uint32_t selector) {
  const uint32_t pair = __byte_perm(biased, 0x64646464u, selector);
  const uint32_t bias = 0x64806480u;  // 1152
  const __half2 value =
      __hsub2(reinterpret_cast<const __half2&>(pair), reinterpret_cast<const __half2&>(bias));
  return reinterpret_cast<const uint32_t&>(value);
}

// E4M3 at the top of a half, its exponent and mantissa moved down by one: the value times 2^-8.
__device__ __forceinline__ uint32_t e4m3_pair(uint32_t bytes, uint32_t selector) {
  const uint32_t pair = __byte_perm(bytes, 0, selector);
  return (pair & 0x80008000u) | ((pair >> 1) & 0x3f803f80u);
}

// Nibbles n of both halves of `codes`: the E2M1 values times 2^-14, as FP16.
template <int n>
__device__ __forceinline__ uint32_t e2m1_pair(uint32_t codes) {
  const uint32_t sign = codes << (12 - 4 * n);
  const uint32_t magnitude = n < 3 ? codes << (n < 3 ? 9 - 4 * n : 0) : codes >> 3;
  return (magnitude & 0x0e000e00u) | (sign & 0x80008000u);
}

// Scales in bytes 0 and 1, times 2^7; with e2m1_pair() a product of value times 2^-7.
__device__ __forceinline__ uint32_t block_scale_pair(uint32_t bytes, uint32_t selector) {
  return multiply_halves(e4m3_pair(bytes, selector), 0x78007800u);  // 2^15
}

// Lane (g, t)'s 16 values of a row, as pairs: k-step j of four multiplies a[j][0], a[j][1]. E2M1
// comes in the order 0 4 1 5 2 6 3 7 of each 8, see place_in_8().
__device__ __forceinline__ void decode_along(const uint4 (&v)[2], uint32_t (&a)[4][2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    a[2 * i][0] = v[i].x, a[2 * i][1] = v[i].y, a[2 * i + 1][0] = v[i].z, a[2 * i + 1][1] = v[i].w;
  }
}
template <bool is_int8>
__device__ __forceinline__ void decode_4_along(uint32_t v, uint32_t (&a)[2]) {
  if constexpr (is_int8) {
    const uint32_t biased = v ^ 0x80808080u;
    a[0] = int8_pair(biased, 0x4140), a[1] = int8_pair(biased, 0x4342);
  } else {
    a[0] = e4m3_pair(v, 0x1404), a[1] = e4m3_pair(v, 0x3424);
  }
}
template <bool is_int8>
__device__ __forceinline__ void decode_along(const uint4& v, uint32_t (&a)[4][2]) {
  decode_4_along<is_int8>(v.x, a[0]);
  decode_4_along<is_int8>(v.y, a[1]);
  decode_4_along<is_int8>(v.z, a[2]);
  decode_4_along<is_int8>(v.w, a[3]);
}
__device__ __forceinline__ void decode_along(const uint2& v, uint32_t block_scale,
                                             uint32_t (&a)[4][2]) {
  const uint32_t scale = block_scale_pair(block_scale, 0x0404);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t codes = i == 0 ? v.x : v.y;
    a[2 * i][0] = multiply_halves(e2m1_pair<0>(codes), scale);
    a[2 * i][1] = multiply_halves(e2m1_pair<1>(codes), scale);
    a[2 * i + 1][0] = multiply_halves(e2m1_pair<2>(codes), scale);
    a[2 * i + 1][1] = multiply_halves(e2m1_pair<3>(codes), scale);
  }
}

// Where value i of 8 belongs in the other factor of decode_along()'s E2M1.
__device__ __forceinline__ int place_in_8(int i) {
  return (i % 4) * 2 + i / 4;
}

// Lane (g, t)'s 8 columns of rows t, t + 4, t + 8, t + 12 as the A fragments of four products of
// 16 columns x 16 rows: of product j, fragment row g is column 8 g + 2 j, row g + 8 the next one.
// The other factor has these 16 rows in the order of place_in_16().
__device__ __forceinline__ void decode_across(const uint4 (&v)[4], uint32_t (&a)[4][4]) {
  const uint32_t(&w)[4][4] = reinterpret_cast<const uint32_t(&)[4][4]>(v);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    a[j][0] = __byte_perm(w[0][j], w[1][j], 0x5410);
    a[j][1] = __byte_perm(w[0][j], w[1][j], 0x7632);
    a[j][2] = __byte_perm(w[2][j], w[3][j], 0x5410);
    a[j][3] = __byte_perm(w[2][j], w[3][j], 0x7632);
  }
}
template <bool is_int8>
__device__ __forceinline__ void decode_across(const uint2 (&v)[4], uint32_t (&a)[4][4]) {
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {  // rows t and t + 4, then t + 8 and t + 12
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // columns 0..3, then 4..7
      uint32_t low = half == 0 ? v[2 * pair].x : v[2 * pair].y;
      uint32_t high = half == 0 ? v[2 * pair + 1].x : v[2 * pair + 1].y;
      if constexpr (is_int8) low ^= 0x80808080u, high ^= 0x80808080u;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t bytes = __byte_perm(low, high, i == 0 ? 0x5140 : 0x7362);
        uint32_t(&to)[4] = a[2 * half + i];
        to[2 * pair] = is_int8 ? int8_pair(bytes, 0x4140) : e4m3_pair(bytes, 0x1404);
        to[2 * pair + 1] = is_int8 ? int8_pair(bytes, 0x4342) : e4m3_pair(bytes, 0x3424);
      }
    }
  }
}
// Byte i of `block_scales` is that of row i of the four.
__device__ __forceinline__ void decode_across(const uint32_t (&v)[4], uint32_t block_scales,
                                              uint32_t (&a)[4][4]) {
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    const uint32_t scale = block_scale_pair(block_scales, pair == 0 ? 0x1404 : 0x3424);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t codes = __byte_perm(v[2 * pair], v[2 * pair + 1], half == 0 ? 0x5410 : 0x7632);
      a[2 * half][2 * pair] = multiply_halves(e2m1_pair<0>(codes), scale);
      a[2 * half][2 * pair + 1] = multiply_halves(e2m1_pair<1>(codes), scale);
      a[2 * half + 1][2 * pair] = multiply_halves(e2m1_pair<2>(codes), scale);
      a[2 * half + 1][2 * pair + 1] = multiply_halves(e2m1_pair<3>(codes), scale);
    }
  }
}

__device__ __forceinline__ int place_in_16(int row) {
  return row % 4 * 4 + row / 4;
}

}  // namespace nibble::cuda
