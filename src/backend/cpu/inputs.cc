#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/inputs.cc"
#include "backend/cpu/inputs.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/instruction_sets.h"
#include "base/check.h"
#include "hwy/foreach_target.h"  // before simd-inl.h
// clang-format off
#include "backend/cpu/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

// x[k] * factors[k], or x[k] where there are no factors.
struct Values {
  const float* x;
  const float* factors;

  float at(int64_t i) const { return factors == nullptr ? x[i] : x[i] * factors[i]; }
};

// The same, known when compiled.
template <bool kScaled>
HWY_INLINE FloatVec load_values(const Values& v, int64_t i) {
  return kScaled ? hn::Mul(load(v.x + i), load(v.factors + i)) : load(v.x + i);
}

// Bits of the largest magnitude, a NaN's above all.
template <bool kScaled>
uint32_t largest_bits(const Values& v, int64_t n) {
  const Words words;
  const WordVec magnitude = hn::Set(words, 0x7fffffffu);
  WordVec most = hn::Zero(words);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    most = hn::Max(most, hn::And(hn::BitCast(words, load_values<kScaled>(v, i)), magnitude));
  }
  uint32_t bits = hn::GetLane(hn::MaxOfLanes(words, most));
  for (; i < n; ++i) {
    const float value = v.at(i);
    uint32_t rest;
    std::memcpy(&rest, &value, sizeof(rest));
    rest &= 0x7fffffffu;
    if (rest > bits) bits = rest;
  }
  return bits;
}

// Words of two integers: of values 0..3 in the low halves, of values 4..7 in the high ones.
template <bool kScaled>
HWY_INLINE void round8(const Values& v, int64_t at, float inverse, int16_t* out) {
#if HWY_TARGET == HWY_SCALAR
  for (int t = 0; t < 4; ++t) {
    out[2 * t] = int16_t(std::nearbyint(v.at(at + t) * inverse));
    out[2 * t + 1] = int16_t(std::nearbyint(v.at(at + t + 4) * inverse));
  }
#else
  const hn::FixedTag<float, 4> four;
  const hn::RebindToSigned<decltype(four)> integers;
  auto x0 = hn::LoadU(four, v.x + at), x1 = hn::LoadU(four, v.x + at + 4);
  if (kScaled) {
    x0 = hn::Mul(x0, hn::LoadU(four, v.factors + at));
    x1 = hn::Mul(x1, hn::LoadU(four, v.factors + at + 4));
  }
  const auto low = hn::NearestInt(hn::Mul(x0, hn::Set(four, inverse)));
  const auto high = hn::NearestInt(hn::Mul(x1, hn::Set(four, inverse)));
  const auto words = hn::Or(hn::And(low, hn::Set(integers, 0xffff)), hn::ShiftLeft<16>(high));
  hn::StoreU(words, integers, reinterpret_cast<int32_t*>(out));
#endif
}

template <bool kScaled>
void round_to_int16(const Values& v, int64_t n, float inverse, int16_t* out) {
  int64_t k = 0;
  for (; k + 8 <= n; k += 8) round8<kScaled>(v, k, inverse, out + k);
  const int64_t padded = (n + 63) / 64 * 64;
  if (k < n) {
    float rest[8] = {};
    for (int64_t i = k; i < n; ++i) rest[i - k] = v.at(i);
    round8<false>({rest, nullptr}, 0, inverse, out + k);
    k += 8;
  }
  if (k < padded) std::memset(out + k, 0, size_t(padded - k) * sizeof(int16_t));
}

template <bool kScaled>
void make_int16(const Values& v, int64_t n, uint8_t* out) {
  const IntegerScale scale = integer_scale(largest_bits<kScaled>(v, n));
  std::memcpy(out, &scale.step, sizeof(scale.step));
  round_to_int16<kScaled>(v, n, scale.inverse, reinterpret_cast<int16_t*>(out + kInt16Header));
}

void make_int16_row(const float* x, const float* factors, int64_t n, uint8_t* out) {
  if (factors == nullptr) return make_int16<false>({x, nullptr}, n, out);
  make_int16<true>({x, factors}, n, out);
}

template <bool kScaled>
void make_bf16(const Values& v, int64_t n, uint8_t* out) {
  uint16_t* to = reinterpret_cast<uint16_t*>(out);
  const hn::Rebind<uint16_t, Words> halves;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const auto bits = hn::BitCast(Integers(), encode_bf16(load_values<kScaled>(v, i)));
    hn::StoreU(hn::DemoteTo(halves, bits), halves, to + i);
  }
  if (i < n) {
    HWY_ALIGN float rest[kLanes] = {};
    HWY_ALIGN uint16_t rounded[kLanes];
    for (int64_t k = i; k < n; ++k) rest[k - i] = v.at(k);
    const auto bits = hn::BitCast(Integers(), encode_bf16(load(rest)));
    hn::StoreU(hn::DemoteTo(halves, bits), halves, rounded);
    for (int64_t k = i; k < n; ++k) to[k] = rounded[k - i];
  }
  const int64_t padded = (n + 31) / 32 * 32;
  if (n < padded) std::memset(to + n, 0, size_t(padded - n) * sizeof(uint16_t));
}

void make_bf16_row(const float* x, const float* factors, int64_t n, uint8_t* out) {
  if (factors == nullptr) return make_bf16<false>({x, nullptr}, n, out);
  make_bf16<true>({x, factors}, n, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(make_int16_row);
HWY_EXPORT(make_bf16_row);

int64_t input_row_bytes(InputFormat format, int64_t cols) {
  switch (format) {
    case InputFormat::kF32:
      return cols * 4;
    case InputFormat::kBF16:  // an odd number of lines, or the rows of a tile would share their
                              // place in the L1 cache
      return ((cols + 31) / 32 | 1) * 64;
    case InputFormat::kInt16:
      return kInt16Header + (cols + 63) / 64 * 128;
    case InputFormat::kSplit16:
      return kInt16Header + (cols + kSplitColumns - 1) / kSplitColumns * kSplitBlockBytes;
  }
  return 0;
}

void make_input_row(InputFormat format, const float* x, const float* factors, int64_t cols,
                    uint8_t* out) {
  switch (format) {
    case InputFormat::kF32:
      CHECK(factors == nullptr, "FP32 inputs have no factors");
      std::memcpy(out, x, size_t(cols) * sizeof(float));
      return;
    case InputFormat::kBF16:
      HWY_DYNAMIC_DISPATCH(make_bf16_row)(x, factors, cols, out);
      return;
    case InputFormat::kInt16:
      HWY_DYNAMIC_DISPATCH(make_int16_row)(x, factors, cols, out);
      return;
    case InputFormat::kSplit16:
#if defined(__x86_64__)
      static const bool avx512 = instruction_sets().avx512vnni;
      (avx512 ? make_split16_row_avx512vnni : make_split16_row_avx2)(x, factors, cols, out);
#endif
      return;
  }
}

namespace {

int integer_of_bytes(const uint8_t* row, int64_t k) {
  const uint8_t* bytes = row + kInt16Header + k / kSplitColumns * kSplitBlockBytes +
                         k % kSplitColumns / 8 * 8 + k % 2 * 4 + k % 8 / 2;
  return 256 * int8_t(bytes[0]) + int8_t(bytes[kSplitColumns]);
}

}  // namespace

InputNorms input_norms(InputFormat format, const float* x, const uint8_t* row, int64_t cols) {
  float scale;
  std::memcpy(&scale, row, sizeof(scale));
  const int16_t* words = reinterpret_cast<const int16_t*>(row + kInt16Header);
  double norm = 0, error = 0;
  for (int64_t k = 0; k < cols; ++k) {
    const int integer = format == InputFormat::kSplit16 ? integer_of_bytes(row, k)
                                                        : words[k / 8 * 8 + k % 4 * 2 + k % 8 / 4];
    const double off = double(x[k]) - double(integer) * double(scale);
    norm += double(x[k]) * double(x[k]);
    error += off * off;
  }
  return {std::sqrt(norm), std::sqrt(error)};
}

}  // namespace nibble
#endif
