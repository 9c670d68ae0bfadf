#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/inputs.cc"
#include "backend/cpu/inputs.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "hwy/foreach_target.h"  // before simd-inl.h
// clang-format off
#include "backend/cpu/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

constexpr float kLargest = 32767;
constexpr float kSmallest = 0x1p-100f;  // rows below it count as zeros: their scale has no inverse

// Bits of the largest magnitude, a NaN's above all.
uint32_t largest_bits(const float* x, int64_t n) {
  const Words words;
  const WordVec magnitude = hn::Set(words, 0x7fffffffu);
  WordVec most = hn::Zero(words);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    most = hn::Max(most, hn::And(hn::BitCast(words, load(x + i)), magnitude));
  }
  uint32_t bits = hn::GetLane(hn::MaxOfLanes(words, most));
  for (; i < n; ++i) {
    uint32_t rest;
    std::memcpy(&rest, x + i, sizeof(rest));
    rest &= 0x7fffffffu;
    if (rest > bits) bits = rest;
  }
  return bits;
}

// Words of two integers: of x[0..3] in the low halves, of x[4..7] in the high ones.
HWY_INLINE void round8(const float* x, float inverse, int16_t* out) {
#if HWY_TARGET == HWY_SCALAR
  for (int t = 0; t < 4; ++t) {
    out[2 * t] = int16_t(std::nearbyint(x[t] * inverse));
    out[2 * t + 1] = int16_t(std::nearbyint(x[t + 4] * inverse));
  }
#else
  const hn::FixedTag<float, 4> four;
  const hn::RebindToSigned<decltype(four)> integers;
  const auto low = hn::NearestInt(hn::Mul(hn::LoadU(four, x), hn::Set(four, inverse)));
  const auto high = hn::NearestInt(hn::Mul(hn::LoadU(four, x + 4), hn::Set(four, inverse)));
  const auto words = hn::Or(hn::And(low, hn::Set(integers, 0xffff)), hn::ShiftLeft<16>(high));
  hn::StoreU(words, integers, reinterpret_cast<int32_t*>(out));
#endif
}

void round_to_int16(const float* x, int64_t n, float inverse, int16_t* out) {
  int64_t k = 0;
  for (; k + 8 <= n; k += 8) round8(x + k, inverse, out + k);
  const int64_t padded = (n + 63) / 64 * 64;
  if (k < n) {
    float rest[8] = {};
    for (int64_t i = k; i < n; ++i) rest[i - k] = x[i];
    round8(rest, inverse, out + k);
    k += 8;
  }
  if (k < padded) std::memset(out + k, 0, size_t(padded - k) * sizeof(int16_t));
}

void make_int16_row(const float* x, int64_t n, uint8_t* out) {
  const uint32_t bits = largest_bits(x, n);
  float largest;
  std::memcpy(&largest, &bits, sizeof(largest));
  float scale = largest / kLargest, inverse = kLargest / largest;
  if (!(largest >= kSmallest)) scale = inverse = 0;
  if (bits >= 0x7f800000u) scale = std::numeric_limits<float>::quiet_NaN(), inverse = 0;
  std::memcpy(out, &scale, sizeof(scale));
  round_to_int16(x, n, inverse, reinterpret_cast<int16_t*>(out + kInt16Header));
}

void multiply_by_e4m3(const float* x, const uint8_t* e4m3, int64_t n, float* out) {
  const Words words;
  const hn::Rebind<uint8_t, Words> bytes;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const WordVec code = hn::PromoteTo(words, hn::LoadU(bytes, e4m3 + i));
    const FloatVec factor = hn::Mul(hn::BitCast(Floats(), hn::ShiftLeft<20>(code)), set(0x1p120f));
    store(hn::Mul(load(x + i), factor), out + i);
  }
  for (; i < n; ++i) {
    const uint32_t bits = uint32_t(e4m3[i]) << 20;
    float factor;
    std::memcpy(&factor, &bits, sizeof(factor));
    out[i] = x[i] * (factor * 0x1p120f);
  }
}

void make_bf16_row(const float* x, int64_t n, uint8_t* out) {
  uint16_t* to = reinterpret_cast<uint16_t*>(out);
  const hn::Rebind<uint16_t, Words> halves;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto bits = hn::BitCast(Integers(), encode_bf16(load(x + i)));
    hn::StoreU(hn::DemoteTo(halves, bits), halves, to + i);
  }
  if (i < n) {
    HWY_ALIGN float rest[kLanes] = {};
    HWY_ALIGN uint16_t rounded[kLanes];
    for (int64_t k = i; k < n; ++k) rest[k - i] = x[k];
    const auto bits = hn::BitCast(Integers(), encode_bf16(load(rest)));
    hn::StoreU(hn::DemoteTo(halves, bits), halves, rounded);
    for (int64_t k = i; k < n; ++k) to[k] = rounded[k - i];
  }
  const int64_t padded = (n + 31) / 32 * 32;
  if (n < padded) std::memset(to + n, 0, size_t(padded - n) * sizeof(uint16_t));
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(make_int16_row);
HWY_EXPORT(multiply_by_e4m3);
HWY_EXPORT(make_bf16_row);

int64_t input_row_bytes(InputFormat format, int64_t cols) {
  switch (format) {
    case InputFormat::kF32:
      return cols * 4;
    case InputFormat::kBF16:
      return (cols + 31) / 32 * 64;
    case InputFormat::kInt16:
      return kInt16Header + (cols + 63) / 64 * 128;
  }
  return 0;
}

void make_input_row(InputFormat format, const float* x, int64_t cols, uint8_t* out) {
  switch (format) {
    case InputFormat::kF32:
      std::memcpy(out, x, size_t(cols) * sizeof(float));
      return;
    case InputFormat::kBF16:
      HWY_DYNAMIC_DISPATCH(make_bf16_row)(x, cols, out);
      return;
    case InputFormat::kInt16:
      HWY_DYNAMIC_DISPATCH(make_int16_row)(x, cols, out);
      return;
  }
}

void make_scaled_input_row(const float* x, const uint8_t* e4m3, int64_t cols, uint8_t* out) {
  constexpr int64_t kMost = 1024;
  CHECK(cols <= kMost, "%ld columns", long(cols));
  alignas(64) float scaled[kMost];
  HWY_DYNAMIC_DISPATCH(multiply_by_e4m3)(x, e4m3, cols, scaled);
  HWY_DYNAMIC_DISPATCH(make_int16_row)(scaled, cols, out);
}

}  // namespace nibble
#endif
