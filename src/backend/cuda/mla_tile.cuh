// A tile of cache records in shared memory as attend_splits multiplies by it, by format. Device
// code.
//
// along() gives k-steps 0 and 1 of four, and then
// the others; what comes at once gives all the first time. Pieces are 16 bytes; swizzles let the
// lanes of a load meet all banks. kLatentScale: a score's factor where a record has no scale of its
// own for the latent. kOutputScale undoes the scales of probabilities and values.
#pragma once

#include "backend/cuda/mla_records.cuh"

namespace nibble::cuda {

inline constexpr float kProbabilityScale = 256.0f;  // keeps small ones out of FP16's subnormals

template <KvFormat format>
struct RecordTile;

template <>
struct RecordTile<KvFormat::kBF16> {
  using Value = bf16;
  static constexpr int kBytes = 2 * kRecord;
  static constexpr bool kHasScales = false, kScalesLatent = false;
  static constexpr float kLatentScale = 1.0f, kOutputScale = 1.0f;
  static constexpr float kProbability = 1.0f;

  __device__ static __forceinline__ int swizzle(int row) { return (row & 1) | (row & 3) << 1; }
  // Piece `piece` of the 8 of a chunk.
  __device__ static __forceinline__ const uint8_t* piece_at(const uint8_t* tile, int row, int chunk,
                                                            int piece) {
    return tile + row * kBytes + (piece ^ swizzle(row)) * 16 + chunk * 128;
  }
  __device__ static __forceinline__ void along(const uint8_t* tile, int row, int chunk, int t,
                                               int half, uint32_t (&a)[4][2]) {
    const uint4 v = *reinterpret_cast<const uint4*>(piece_at(tile, row, chunk, 2 * t + half));
    a[2 * half][0] = v.x, a[2 * half][1] = v.y;
    a[2 * half + 1][0] = v.z, a[2 * half + 1][1] = v.w;
  }
  // The rope key's k-step j.
  __device__ static __forceinline__ void rope(const uint8_t* tile, int row, int j, int t,
                                              uint32_t (&a)[2]) {
    const uint2 v = *reinterpret_cast<const uint2*>(
        piece_at(tile, row, kLatent / 64, 2 * t + j / 2) + j % 2 * 8);
    a[0] = v.x, a[1] = v.y;
  }
  __device__ static __forceinline__ void across(const uint8_t* tile, int row, int chunk, int g,
                                                uint32_t (&a)[4][4]) {
    uint4 v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[i] = *reinterpret_cast<const uint4*>(piece_at(tile, row, chunk, g) + 4 * i * kBytes);
    }
    decode_across(v, a);
  }
};

template <bool is_int8>
struct ByteTile {
  using Value = __half;
  static constexpr int kBytes = kRecord;
  static constexpr bool kHasScales = is_int8, kScalesLatent = is_int8;
  static constexpr float kLatentScale = 256.0f;  // E4M3 comes times 2^-8
  static constexpr float kOutputScale = is_int8 ? 1.0f / kProbabilityScale : 1.0f;
  static constexpr float kProbability = kProbabilityScale;

  __device__ static __forceinline__ int swizzle(int row) { return row & 2; }
  // Piece `piece` of the 4 of a chunk.
  __device__ static __forceinline__ const uint8_t* piece_at(const uint8_t* tile, int row, int chunk,
                                                            int piece) {
    return tile + row * kBytes + (piece ^ swizzle(row)) * 16 + chunk * 64;
  }
  __device__ static __forceinline__ void along(const uint8_t* tile, int row, int chunk, int t,
                                               int half, uint32_t (&a)[4][2]) {
    if (half > 0) return;
    decode_along<is_int8>(*reinterpret_cast<const uint4*>(piece_at(tile, row, chunk, t)), a);
  }
  __device__ static __forceinline__ void rope(const uint8_t* tile, int row, int j, int t,
                                              uint32_t (&a)[2]) {
    decode_4_along<is_int8>(
        *reinterpret_cast<const uint32_t*>(piece_at(tile, row, kLatent / 64, t) + 4 * j), a);
  }
  __device__ static __forceinline__ void across(const uint8_t* tile, int row, int chunk, int g,
                                                uint32_t (&a)[4][4]) {
    uint2 v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[i] = *reinterpret_cast<const uint2*>(piece_at(tile, row, chunk, g / 2) + g % 2 * 8 +
                                             4 * i * kBytes);
    }
    decode_across<is_int8>(v, a);
  }
};
template <>
struct RecordTile<KvFormat::kFp8> : ByteTile<false> {};
template <>
struct RecordTile<KvFormat::kInt8> : ByteTile<true> {};

template <>
struct RecordTile<KvFormat::kNvfp4> {
  using Value = __half;
  static constexpr int kScalesAt = kLatent / 2, kRopeAt = kScalesAt + kLatent / 16;
  static constexpr int kBytes = kRopeAt + kRope;
  static constexpr bool kHasScales = true, kScalesLatent = false;
  static constexpr float kLatentScale = 128.0f;  // values come times 2^-7
  static constexpr float kOutputScale = 128.0f / kProbabilityScale;
  static constexpr float kProbability = kProbabilityScale;

  __device__ static __forceinline__ int swizzle(int) { return 0; }
  __device__ static __forceinline__ void along(const uint8_t* tile, int row, int chunk, int t,
                                               int half, uint32_t (&a)[4][2]) {
    if (half > 0) return;
    const uint8_t* record = tile + row * kBytes;
    decode_along(*reinterpret_cast<const uint2*>(record + 32 * chunk + 8 * t),
                 record[kScalesAt + 4 * chunk + t], a);
  }
  __device__ static __forceinline__ void rope(const uint8_t* tile, int row, int j, int t,
                                              uint32_t (&a)[2]) {
    decode_4_along<true>(
        *reinterpret_cast<const uint32_t*>(tile + row * kBytes + kRopeAt + 16 * t + 4 * j), a);
  }
  __device__ static __forceinline__ void across(const uint8_t* tile, int row, int chunk, int g,
                                                uint32_t (&a)[4][4]) {
    uint32_t v[4], scales = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint8_t* record = tile + (row + 4 * i) * kBytes;
      v[i] = *reinterpret_cast<const uint32_t*>(record + 32 * chunk + 4 * g);
      scales |= uint32_t(record[kScalesAt + 4 * chunk + g / 2]) << (8 * i);
    }
    decode_across(v, scales, a);
  }
};

}  // namespace nibble::cuda
