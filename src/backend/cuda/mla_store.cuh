// mla_store of one row: the latent's norm, the rope key's rotation and the record's encoding, by
// the first 160 threads of a block. A thread of the first 128 holds 4 values of the latent, and
// encodes a block of E2M1 with one of its four scales; the last warp has the rope key, a pair a
// lane. Device code.
#pragma once

#include <cuda_fp8.h>

#include <type_traits>

#include "backend/cuda/mla.h"
#include "backend/cuda/mla_records.cuh"
#include "backend/cuda/rope.cuh"

namespace nibble::cuda {

inline constexpr int kLatentThreads = 128;
inline constexpr int kStoreThreads = kLatentThreads + kWarp;  // at least; of a block, others wait
static_assert(kLatentThreads * 4 == kLatent && kRope / 2 == kWarp);

__device__ __forceinline__ uint8_t to_e4m3(float value) {
  return uint8_t(__nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3));
}

__device__ __forceinline__ float from_e4m3(uint8_t bits) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(bits, __NV_E4M3)));
}

// Nearest, ties to even; a negative value that rounds to zero keeps its sign.
__device__ __forceinline__ uint32_t to_e2m1(float value) {
  const float x = fabsf(value);
  const int code = (x > 0.25f) + (x >= 0.75f) + (x > 1.25f) + (x >= 1.75f) + (x > 2.5f) +
                   (x >= 3.5f) + (x > 5.0f);
  return uint32_t(code) | (value < 0 ? 8u : 0u);
}

__device__ __forceinline__ float from_e2m1(uint32_t code) {
  const float magnitude = (code & 7) < 4
                              ? 0.5f * float(code & 7)
                              : ((code & 1) != 0 ? 3.0f : 2.0f) * ((code & 2) ? 2.0f : 1.0f);
  return (code & 8) != 0 ? -magnitude : magnitude;
}

__device__ __forceinline__ float int8_scale(float largest) {
  return to_float(from_float<bf16>(__fdiv_rn(fmaxf(largest, 1e-12f), 127.0f)));
}

// Codes of values up to 127 times the scale: rounded quotients, as a division gives them.
struct Int8Codes {
  float scale, inverse;

  __device__ __forceinline__ explicit Int8Codes(float scale) : scale(scale) {
    inverse = __frcp_rn(scale);
  }

  __device__ __forceinline__ uint32_t operator()(float value) const {
    const float near = value * inverse;
    const float quotient = fmaf(fmaf(-near, scale, value), inverse, near);
    return uint32_t(int(fminf(fmaxf(rintf(quotient), -127.0f), 127.0f))) & 0xffu;
  }
};

struct StoreShared {
  float sums[kLatentThreads / kWarp];
  float largest[kLatentThreads / kWarp];
  alignas(16) float latent[kLatent];
};

// The block of 16 values that this thread shares with three others, each trying one scale.
__device__ __forceinline__ void encode_e2m1(const float* values, int choice, uint8_t* codes,
                                            uint8_t* scale_at) {
  float largest = 0;
  for (int i = 0; i < 16; ++i) largest = fmaxf(largest, fabsf(values[i]));
  const float divisor = choice == 0 ? 6.0f : choice == 1 ? 4.0f : choice == 2 ? 5.0f : 7.0f;
  const uint8_t bits = to_e4m3(fminf(fmaxf(__fdiv_rn(largest, divisor), 0x1p-9f), 448.0f));
  const float scale = from_e4m3(bits);
  uint32_t packed[2] = {};
  float error = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const uint32_t code = to_e2m1(__fdiv_rn(values[i], scale));
    packed[i / 8] |= code << (i % 8 * 4);
    const float off = __fsub_rn(__fmul_rn(from_e2m1(code), scale), values[i]);
    error = __fadd_rn(error, __fmul_rn(off, off));
  }
  float best = error;
  int chosen = choice;
#pragma unroll
  for (int offset = 1; offset < 4; offset *= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, best, offset);
    const int other_choice = __shfl_xor_sync(0xffffffffu, chosen, offset);
    if (other < best || (other == best && other_choice < chosen)) {
      best = other, chosen = other_choice;
    }
  }
  if (chosen != choice) return;
  *reinterpret_cast<uint2*>(codes) = make_uint2(packed[0], packed[1]);
  *scale_at = bits;
}

// Four values of the latent a thread.
template <KvFormat format>
__device__ __forceinline__ void encode_latent(float4 v, StoreShared& s, uint8_t* values,
                                              uint8_t* scales) {
  const int i = threadIdx.x;
  if constexpr (format == KvFormat::kF32) {
    reinterpret_cast<float4*>(values)[i] = v;
  } else if constexpr (format == KvFormat::kBF16) {
    reinterpret_cast<uint2*>(values)[i] =
        make_uint2(pack(v.x, v.y, bf16()), pack(v.z, v.w, bf16()));
  } else if constexpr (format == KvFormat::kFp8) {
    reinterpret_cast<uint32_t*>(values)[i] = uint32_t(to_e4m3(v.x)) | uint32_t(to_e4m3(v.y)) << 8 |
                                             uint32_t(to_e4m3(v.z)) << 16 |
                                             uint32_t(to_e4m3(v.w)) << 24;
  } else if constexpr (format == KvFormat::kInt8) {
    float largest = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
    largest = warp_max(largest);
    if (i % kWarp == 0) s.largest[i / kWarp] = largest;
    __syncthreads();
    largest = fmaxf(fmaxf(s.largest[0], s.largest[1]), fmaxf(s.largest[2], s.largest[3]));
    const float scale = int8_scale(largest);
    const Int8Codes code(scale);
    reinterpret_cast<uint32_t*>(values)[i] =
        code(v.x) | code(v.y) << 8 | code(v.z) << 16 | code(v.w) << 24;
    if (i == 0) *reinterpret_cast<bf16*>(scales) = from_float<bf16>(scale);
  } else {
    reinterpret_cast<float4*>(s.latent)[i] = v;
    __syncthreads();
    encode_e2m1(s.latent + i / 4 * 16, i % 4, values + i / 4 * 8, values + kLatent / 2 + i / 4);
  }
}

// A pair of the rope key a lane of one warp.
template <KvFormat format>
__device__ __forceinline__ void encode_rope(float2 v, uint8_t* values, uint8_t* scales) {
  const int lane = threadIdx.x % kWarp;
  if constexpr (format == KvFormat::kF32) {
    reinterpret_cast<float2*>(values)[kLatent / 2 + lane] = v;
  } else if constexpr (format == KvFormat::kBF16) {
    reinterpret_cast<uint32_t*>(values)[kLatent / 2 + lane] = pack(v.x, v.y, bf16());
  } else if constexpr (format == KvFormat::kFp8) {
    reinterpret_cast<uint16_t*>(values)[kLatent / 2 + lane] =
        uint16_t(to_e4m3(v.x) | to_e4m3(v.y) << 8);
  } else {
    constexpr bool is_int8 = format == KvFormat::kInt8;
    const float scale = int8_scale(warp_max(fmaxf(fabsf(v.x), fabsf(v.y))));
    const Int8Codes code(scale);
    uint8_t* to = values + (is_int8 ? kLatent : kLatent / 2 + kLatent / 16);
    reinterpret_cast<uint16_t*>(to)[lane] = uint16_t(code(v.x) | code(v.y) << 8);
    if (lane == 0) *reinterpret_cast<bf16*>(scales + (is_int8 ? 2 : 0)) = from_float<bf16>(scale);
  }
}

// Calls run() with the format as a constant.
template <typename Run>
__device__ __forceinline__ void with_record_format(KvFormat format, Run&& run) {
  switch (format) {
    case KvFormat::kF32:
      return run(std::integral_constant<KvFormat, KvFormat::kF32>());
    case KvFormat::kBF16:
      return run(std::integral_constant<KvFormat, KvFormat::kBF16>());
    case KvFormat::kFp8:
      return run(std::integral_constant<KvFormat, KvFormat::kFp8>());
    case KvFormat::kInt8:
      return run(std::integral_constant<KvFormat, KvFormat::kInt8>());
    case KvFormat::kNvfp4:
      return run(std::integral_constant<KvFormat, KvFormat::kNvfp4>());
  }
}

// The rows of a batch, and where they go.
template <typename In>
struct StoreRows {
  Matrix<In> kv;
  const float* gain = nullptr;
  float eps = 0;
  Records records;
  KvFormat format = KvFormat::kBF16;  // of the records
};

template <typename In>
StoreRows<In> store_rows_of(const Store& store) {
  return {Matrix<In>(store.kv), store.gain, store.shape.norm_eps, Records(store.cache),
          store.cache.format};
}

// What can be known of a row before its values.
struct StorePlace {
  uint8_t *values = nullptr, *scales = nullptr;
  float4 gain;  // of a thread's values of the latent
  float2 turn;  // of a lane's pair of the rope key

  template <typename In>
  __device__ __forceinline__ StorePlace(const StoreRows<In>& rows, const Rope& rope,
                                        const StepView& step, int row) {
    const int position = step.positions[row], page_size = rows.records.page_size;
    const int64_t page = step.pages[segment_of(step, row).first_page + position / page_size];
    values = rows.records.values(page, position % page_size);
    scales = rows.records.scales(page, position % page_size);
    const int i = int(threadIdx.x);
    if (i < kLatentThreads) gain = reinterpret_cast<const float4*>(rows.gain)[i];
    if (i >= kLatentThreads) turn = turn_of(rope, position, i - kLatentThreads);
  }
};

// By the first kStoreThreads threads, when the others have returned.
template <typename In>
__device__ __forceinline__ void store_row(const StoreRows<In>& rows, int row,
                                          const StorePlace& place, StoreShared& s) {
  const int i = threadIdx.x;
  if (i >= kLatentThreads) {
    const In* pair = rows.kv.row(row) + kLatent + 2 * (i - kLatentThreads);
    const float2 turned = rotate(place.turn, to_float(pair[0]), to_float(pair[1]));
    return with_record_format(rows.format, [&](auto format) {
      encode_rope<format()>(turned, place.values, place.scales);
    });
  }
  struct alignas(4 * sizeof(In)) Four {
    In x[4];
  };
  const Four from = reinterpret_cast<const Four*>(rows.kv.row(row))[i];
  float4 v = make_float4(to_float(from.x[0]), to_float(from.x[1]), to_float(from.x[2]),
                         to_float(from.x[3]));
  const float square = warp_sum(v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w);
  if (i % kWarp == 0) s.sums[i / kWarp] = square;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kLatentThreads / kWarp; ++w) sum += s.sums[w];
  const float scale = rsqrtf(fmaf(sum, 1.0f / kLatent, rows.eps));
  const float4 g = place.gain;
  v = make_float4(v.x * scale * g.x, v.y * scale * g.y, v.z * scale * g.z, v.w * scale * g.w);
  with_record_format(
      rows.format, [&](auto format) { encode_latent<format()>(v, s, place.values, place.scales); });
}

}  // namespace nibble::cuda
