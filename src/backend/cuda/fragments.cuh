// Units of packed matrices (packed.h) on their way to the tensor cores, and activations as B
// fragments in the same order of columns. Device code.
//
// A unit is fetched by one warp, each lane the bytes that it reads back itself, so that waiting for
// its own copies is all the synchronization there is.
#pragma once

#include "backend/cuda/packed.h"
#include "backend/cuda/products.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/tile.cuh"

namespace nibble::cuda {

inline constexpr int kChunkInputs = 64;
inline constexpr int kBlockInputs = 16;  // consecutive columns of a lane in a chunk

__device__ __forceinline__ uint32_t multiply_pairs(uint32_t a, uint32_t b) {
  const __nv_bfloat162 product =
      __hmul2(reinterpret_cast<const __nv_bfloat162&>(a), reinterpret_cast<__nv_bfloat162&>(b));
  return reinterpret_cast<const uint32_t&>(product);
}

struct Nvfp4Unit {
  static constexpr int kInputs = 128, kChunks = 2, kBytes = 1152, kProducts = 1;
  static constexpr int kScalesAt = 1024;
  static constexpr int kStages = 4;  // of a warp's ring

  struct Raw {
    uint4 codes[2];
    uint32_t scales;
  };
  struct Registers {
    uint32_t codes[2][4];
    uint32_t scales[2][2];  // of rows g and g + 8, as pairs of BF16
  };

  template <typename... Policy>
  static __device__ __forceinline__ void fetch(uint8_t* shared, const uint8_t* unit, int lane,
                                               Policy... policy) {
    copy_async_16(shared + lane * 16, unit + lane * 16, policy...);
    copy_async_16(shared + 512 + lane * 16, unit + 512 + lane * 16, policy...);
    copy_async_4(shared + 1024 + lane * 4, unit + 1024 + lane * 4, policy...);
  }

  static __device__ __forceinline__ Raw load(const uint8_t* unit, int lane) {
    return {{*reinterpret_cast<const uint4*>(unit + lane * 16),
             *reinterpret_cast<const uint4*>(unit + 512 + lane * 16)},
            *reinterpret_cast<const uint32_t*>(unit + 1024 + lane * 4)};
  }
  static __device__ __forceinline__ Registers unpack(const Raw& raw) {
    Registers r;
    for (int c = 0; c < 2; ++c) {
      const uint4 q = raw.codes[c];
      r.codes[c][0] = q.x, r.codes[c][1] = q.y, r.codes[c][2] = q.z, r.codes[c][3] = q.w;
    }
    r.scales[0][0] = scale_pair(__byte_perm(raw.scales, 0, 0x4040));
    r.scales[0][1] = scale_pair(__byte_perm(raw.scales, 0, 0x4141));
    r.scales[1][0] = scale_pair(__byte_perm(raw.scales, 0, 0x4242));
    r.scales[1][1] = scale_pair(__byte_perm(raw.scales, 0, 0x4343));
    return r;
  }
  static __device__ __forceinline__ Registers read(const uint8_t* shared, int lane) {
    return unpack(load(shared, lane));
  }

  // The A fragment of product j of a chunk: e2m1 * 2^-126 times e4m3 * 2^106, exact.
  static __device__ __forceinline__ void fragment(const Registers& r, int chunk, int j, int,
                                                  uint32_t (&a)[4]) {
    const uint32_t q = r.codes[chunk][j];
    constexpr uint32_t kCode = 0x81c081c0u, kMantissa = 0x00400040u;
    const uint32_t low = r.scales[chunk][0], high = r.scales[chunk][1];
    a[0] = multiply_pairs(q & kCode, low);
    a[1] = multiply_pairs((q << 6) & kCode, high);
    a[2] = multiply_pairs(__funnelshift_l(q, q, 10) & kCode, low);
    a[3] = multiply_pairs(((q << 4) & (kCode & ~kMantissa)) | ((q >> 4) & kMantissa), high);
  }

 private:
  // An E5M3 byte in both halves -> BF16: its exponent under the three highest exponent bits.
  static __device__ __forceinline__ uint32_t scale_pair(uint32_t bytes) {
    return bytes * 16 + 0x70007000u;
  }
};

template <int products>
struct ValueUnit {
  static constexpr int kInputs = 64, kChunks = 1, kBytes = 2048 * products, kProducts = products;
  static constexpr int kStages = 2;

  struct Registers {
    uint4 values[products][4];
  };
  using Raw = Registers;

  template <typename... Policy>
  static __device__ __forceinline__ void fetch(uint8_t* shared, const uint8_t* unit, int lane,
                                               Policy... policy) {
#pragma unroll
    for (int j = 0; j < 4 * products; ++j) {
      copy_async_16(shared + j * 512 + lane * 16, unit + j * 512 + lane * 16, policy...);
    }
  }

  static __device__ __forceinline__ Raw load(const uint8_t* unit, int lane) {
    Raw r;
#pragma unroll
    for (int j = 0; j < 4 * products; ++j) {
      r.values[j / 4][j % 4] = *reinterpret_cast<const uint4*>(unit + j * 512 + lane * 16);
    }
    return r;
  }
  static __device__ __forceinline__ Registers unpack(const Raw& raw) {
    return raw;
  }
  static __device__ __forceinline__ Registers read(const uint8_t* shared, int lane) {
    return load(shared, lane);
  }

  static __device__ __forceinline__ void fragment(const Registers& r, int, int j, int product,
                                                  uint32_t (&a)[4]) {
    const uint4 v = r.values[product][j];
    a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
  }
};

using Bf16Unit = ValueUnit<1>;
using F32Unit = ValueUnit<2>;

// Calls run(Unit()) with the unit of a matrix' format.
template <typename Run>
void with_unit(Format format, Run&& run) {
  if (format == Format::kNvfp4) return run(Nvfp4Unit());
  if (format == Format::kBF16) return run(Bf16Unit());
  run(F32Unit());
}

// A lane's 16 columns from `column` on of `row`: the B registers 2j, 2j + 1 of the chunk's products
// j. Zeros for a row < 0 and beyond the last column.
__device__ __forceinline__ void load_inputs(const Activations& x, int row, int column,
                                            uint32_t (&b)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) b[i] = 0;
  if (row < 0 || column >= x.cols) return;
  const auto* from = reinterpret_cast<const uint4*>(static_cast<const bf16*>(x.data) +
                                                    int64_t(row) * int(x.stride) + column);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint4 v = from[i];
    b[4 * i] = v.x, b[4 * i + 1] = v.y, b[4 * i + 2] = v.z, b[4 * i + 3] = v.w;
  }
}

// sum += the products of one chunk with a lane's inputs of 8 rows, and of 8 more.
template <typename Unit, int kGroups>
__device__ __forceinline__ void multiply_chunk(float (&sum)[kGroups][4],
                                               const typename Unit::Registers& r, int chunk,
                                               const uint32_t (&b)[kGroups][8]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int p = 0; p < Unit::kProducts; ++p) {
      uint32_t a[4];
      Unit::fragment(r, chunk, j, p, a);
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
        const uint32_t pair[2] = {b[n][2 * j], b[n][2 * j + 1]};
        multiply_bf16(sum[n], a, pair);
      }
    }
  }
}

template <typename Unit>
__device__ __forceinline__ void multiply_chunk(float (&sum)[4], const typename Unit::Registers& r,
                                               int chunk, const uint32_t (&b)[8]) {
  multiply_chunk<Unit>(reinterpret_cast<float(&)[1][4]>(sum), r, chunk,
                       reinterpret_cast<const uint32_t(&)[1][8]>(b));
}

// The matrix' row at `place` (0-15) of a tile, -1 for padding.
__device__ __forceinline__ int row_of(const PackedMatrices& w, int tile, int place) {
  if (!w.halves) return tile * 16 + place < w.rows ? tile * 16 + place : -1;
  const int row = tile * 8 + place % 8;
  return row < w.rows / 2 ? row + place / 8 * (w.rows / 2) : -1;
}

__device__ __forceinline__ void store(const Results& out, int64_t row, int64_t column,
                                      float value) {
  if (out.is_f32) {
    float& cell = static_cast<float*>(out.data)[row * out.stride + column];
    cell = out.accumulate ? cell + value : value;
  } else {
    bf16& cell = static_cast<bf16*>(out.data)[row * out.stride + column];
    cell = from_float<bf16>(out.accumulate ? to_float(cell) + value : value);
  }
}

// The same for four columns, the first a multiple of four, in rows of a multiple of four.
__device__ __forceinline__ void store_4(const Results& out, int64_t row, int64_t column, float4 v) {
  if (out.is_f32) {
    auto* cells =
        reinterpret_cast<float4*>(static_cast<float*>(out.data) + row * out.stride + column);
    if (out.accumulate) {
      const float4 old = *cells;
      v = make_float4(old.x + v.x, old.y + v.y, old.z + v.z, old.w + v.w);
    }
    *cells = v;
  } else {
    bf16* cells = static_cast<bf16*>(out.data) + row * out.stride + column;
    const float values[4] = {v.x, v.y, v.z, v.w};
    __align__(8) bf16 four[4] = {};
    if (out.accumulate) *reinterpret_cast<uint2*>(four) = *reinterpret_cast<const uint2*>(cells);
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = from_float<bf16>(to_float(four[i]) + values[i]);
    *reinterpret_cast<uint2*>(cells) = *reinterpret_cast<const uint2*>(four);
  }
}

}  // namespace nibble::cuda
