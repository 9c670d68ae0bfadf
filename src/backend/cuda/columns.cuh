// A row as a warp holds it: lane l has columns 8 l .. 8 l + 7 of each step of 256. Sums over a row
// are taken in one order, by a warp or by several: a lane's of each step from zero, then over the
// steps, then over the lanes as a tree. Device code.
#pragma once

#include "backend/cuda/tile.cuh"

namespace nibble::cuda {

inline constexpr int kLaneColumns = 8;
inline constexpr int kStepColumns = kWarp * kLaneColumns;

// Eight columns as they lie in memory, aligned to 16 bytes.
template <typename T>
struct Columns {
  uint4 words[sizeof(T) / 2];

  __device__ __forceinline__ void load(const T* from) {
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 2); ++i) words[i] = reinterpret_cast<const uint4*>(from)[i];
  }
};

__device__ __forceinline__ void unpack(const Columns<float>& c, float (&v)[kLaneColumns]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    v[4 * i] = __uint_as_float(c.words[i].x);
    v[4 * i + 1] = __uint_as_float(c.words[i].y);
    v[4 * i + 2] = __uint_as_float(c.words[i].z);
    v[4 * i + 3] = __uint_as_float(c.words[i].w);
  }
}

__device__ __forceinline__ void unpack(const Columns<bf16>& c, float (&v)[kLaneColumns]) {
  const uint32_t words[4] = {c.words[0].x, c.words[0].y, c.words[0].z, c.words[0].w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = __uint_as_float(words[i] << 16);
    v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

template <typename T>
__device__ __forceinline__ bool is_whole(const T* row, int64_t k, int64_t cols) {
  return k + kLaneColumns <= cols && reinterpret_cast<uintptr_t>(row + k) % 16 == 0;
}

// Columns k .. k + 7 of a row of `cols`, zeros beyond.
template <typename T>
__device__ __forceinline__ void load_columns(const T* row, int64_t k, int64_t cols,
                                             float (&v)[kLaneColumns]) {
  if (is_whole(row, k, cols)) {
    Columns<T> columns;
    columns.load(row + k);
    return unpack(columns, v);
  }
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) v[i] = k + i < cols ? to_float(row[k + i]) : 0.0f;
}

// The same as they lie in memory.
template <typename T>
__device__ __forceinline__ Columns<T> raw_columns(const T* row, int64_t k, int64_t cols) {
  Columns<T> columns;
  if (is_whole(row, k, cols)) {
    columns.load(row + k);
    return columns;
  }
  __align__(16) T values[kLaneColumns];
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) values[i] = k + i < cols ? row[k + i] : from_float<T>(0);
  columns.load(values);
  return columns;
}

// Eight columns to `at`, aligned to 16 bytes.
template <typename T>
__device__ __forceinline__ void store_whole_columns(const float (&v)[kLaneColumns], T* at) {
  __align__(16) T values[kLaneColumns];
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) values[i] = from_float<T>(v[i]);
  Columns<T> columns;
  columns.load(values);
#pragma unroll
  for (int i = 0; i < int(sizeof(T) / 2); ++i) reinterpret_cast<uint4*>(at)[i] = columns.words[i];
}

// Those of them that the row has.
template <typename T>
__device__ __forceinline__ void store_columns(const float (&v)[kLaneColumns], int64_t k,
                                              int64_t cols, T* row) {
  if (is_whole(row, k, cols)) return store_whole_columns(v, row + k);
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) {
    if (k + i < cols) row[k + i] = from_float<T>(v[i]);
  }
}

// The first steps of a row in registers.
struct RowColumns {
  static constexpr int kSteps = 8;
  static constexpr int kColumns = kSteps * kStepColumns;
  float v[kSteps][kLaneColumns];

  // visit(k, v) for the steps that a row of `cols` has.
  template <typename Visit>
  __device__ __forceinline__ void for_each(int64_t cols, Visit visit) {
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const int k = j * kStepColumns + int(threadIdx.x) % kWarp * kLaneColumns;
      if (k < cols) visit(k, v[j]);
    }
  }
  template <typename T>
  __device__ __forceinline__ void load(const T* row, int64_t cols) {
    for_each(cols, [&](int k, float(&to)[kLaneColumns]) { load_columns(row, k, cols, to); });
  }
};

__device__ __forceinline__ float squares(const float (&x)[kLaneColumns]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) sum = fmaf(x[i], x[i], sum);
  return sum;
}

__device__ __forceinline__ float products(const float (&x)[kLaneColumns],
                                          const float (&w)[kLaneColumns]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) sum = fmaf(x[i], w[i], sum);
  return sum;
}

// x += d
__device__ __forceinline__ void add_columns(const float (&d)[kLaneColumns],
                                            float (&x)[kLaneColumns]) {
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) x[i] += d[i];
}

// x = x * scale * gain
__device__ __forceinline__ void scale_columns(float scale, const float (&gain)[kLaneColumns],
                                              float (&x)[kLaneColumns]) {
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) x[i] = x[i] * scale * gain[i];
}

// x as BF16 keeps it: in pairs, which one conversion takes.
__device__ __forceinline__ void round_columns(float (&x)[kLaneColumns]) {
#pragma unroll
  for (int i = 0; i < kLaneColumns; i += 2) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x[i], x[i + 1]);
    const uint32_t bits = reinterpret_cast<const uint32_t&>(pair);
    x[i] = __uint_as_float(bits << 16), x[i + 1] = __uint_as_float(bits & 0xffff0000u);
  }
}

// Of a warp's lane sums of squares. inverse_cols: 1 / cols, made before the row is there.
__device__ __forceinline__ float norm_scale(float square, float inverse_cols, float eps) {
  return rsqrtf(fmaf(warp_sum(square), inverse_cols, eps));
}

}  // namespace nibble::cuda
