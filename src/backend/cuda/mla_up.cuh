// kv_b on the card, as the kernels of latent attention read it. Plain loads: the assembler would
// move those of the read-only path behind a wait that comes after them. Device code.
#pragma once

#include "backend/cuda/mla_records.cuh"

namespace nibble::cuda {

// A head has kUpRows rows of kLatent columns. kBF16: values; kNvfp4: codes and block scales, with
// the tensor's scale as `scale` times each row's own part of it.
struct LatentUp {
  KvFormat format = KvFormat::kBF16;  // kBF16 or kNvfp4
  int heads = 0;
  const uint8_t* values = nullptr;
  const uint8_t* block_scales = nullptr;  // kNvfp4
  const float* row_scales = nullptr;      // kNvfp4: 1 where all parts have one scale
  float scale = 1.0f;
};

template <KvFormat format>
struct UpRows;

template <>
struct UpRows<KvFormat::kBF16> {
  using Value = bf16;
  static constexpr float kScale = 1.0f;  // value = factor * kScale

  struct Along {
    uint4 v[2];
  };
  struct Across {
    uint4 v[4];
  };

  __device__ static __forceinline__ Along load_along(const LatentUp& w, int64_t row, int chunk,
                                                     int t) {
    const uint4* at = reinterpret_cast<const uint4*>(w.values + row * (2 * kLatent)) + 8 * chunk;
    return {{at[2 * t], at[2 * t + 1]}};
  }
  __device__ static __forceinline__ void decode(const Along& raw, uint32_t (&a)[4][2]) {
    decode_along(raw.v, a);
  }
  // Columns from 8 g on of the chunk, of four rows from `row` on.
  __device__ static __forceinline__ Across load_across(const LatentUp& w, int64_t row, int chunk,
                                                       int g) {
    Across raw;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      raw.v[i] =
          reinterpret_cast<const uint4*>(w.values + (row + i) * (2 * kLatent))[8 * chunk + g];
    }
    return raw;
  }
  __device__ static __forceinline__ void decode(const Across& raw, uint32_t (&a)[4][4]) {
    decode_across(raw.v, a);
  }
  __device__ static __forceinline__ int place(int column) {
    return column;
  }
  __device__ static __forceinline__ float row_scale(const LatentUp&, int64_t) {
    return 1.0f;
  }
};

template <>
struct UpRows<KvFormat::kNvfp4> {
  using Value = __half;
  static constexpr float kScale = 128.0f;

  struct Along {
    uint2 v;
    uint32_t block_scale;
  };
  struct Across {
    uint32_t v[4];
    uint32_t block_scales;
  };

  __device__ static __forceinline__ Along load_along(const LatentUp& w, int64_t row, int chunk,
                                                     int t) {
    return {reinterpret_cast<const uint2*>(w.values + row * (kLatent / 2))[4 * chunk + t],
            w.block_scales[row * (kLatent / 16) + 4 * chunk + t]};
  }
  __device__ static __forceinline__ void decode(const Along& raw, uint32_t (&a)[4][2]) {
    decode_along(raw.v, raw.block_scale, a);
  }
  __device__ static __forceinline__ Across load_across(const LatentUp& w, int64_t row, int chunk,
                                                       int g) {
    Across raw{};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t r = row + i;
      raw.v[i] = reinterpret_cast<const uint32_t*>(w.values + r * (kLatent / 2))[8 * chunk + g];
      const uint32_t scale = w.block_scales[r * (kLatent / 16) + 4 * chunk + g / 2];
      raw.block_scales |= scale << (8 * i);
    }
    return raw;
  }
  __device__ static __forceinline__ void decode(const Across& raw, uint32_t (&a)[4][4]) {
    decode_across(raw.v, raw.block_scales, a);
  }
  __device__ static __forceinline__ int place(int column) {
    return column / 8 * 8 + place_in_8(column % 8);
  }
  __device__ static __forceinline__ float row_scale(const LatentUp& w, int64_t row) {
    return w.row_scales[row];
  }
};

// Calls run() with the format of kv_b as a constant.
template <typename Run>
void with_up_format(KvFormat format, Run&& run) {
  if (format == KvFormat::kNvfp4) return run(std::integral_constant<KvFormat, KvFormat::kNvfp4>());
  run(std::integral_constant<KvFormat, KvFormat::kBF16>());
}

}  // namespace nibble::cuda
