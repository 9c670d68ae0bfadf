// What vector kernels share. Included once per target by files that foreach_target compiles.
//
// All functions give the same bits for a value whatever its lane and neighbours.
#if defined(NIBBLE_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_SIMD_INL_H_
#undef NIBBLE_SIMD_INL_H_
#else
#define NIBBLE_SIMD_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Words = hn::RebindToUnsigned<Floats>;
using Integers = hn::RebindToSigned<Floats>;
using FloatVec = hn::Vec<Floats>;
using WordVec = hn::Vec<Words>;

inline constexpr int kLanes = HWY_LANES(float);
inline constexpr int kVectorRegisters = HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64 ? 32 : 16;

HWY_INLINE FloatVec zero() {
  return hn::Zero(Floats());
}
HWY_INLINE FloatVec set(float x) {
  return hn::Set(Floats(), x);
}
HWY_INLINE FloatVec load(const float* x) {
  return hn::LoadU(Floats(), x);
}
HWY_INLINE void store(FloatVec v, float* x) {
  hn::StoreU(v, Floats(), x);
}

// The same value, loaded once: g++ would rather repeat the load in every multiply-add.
HWY_INLINE FloatVec in_register(FloatVec v) {
#if HWY_COMPILER_GCC_ACTUAL && HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR
  asm("" : "+v"(v.raw));
#endif
  return v;
}

// e^x within 2 ulp; 0 below -104, infinity above 88.8.
HWY_INLINE FloatVec exp(FloatVec x) {
  const Floats f;
  const Integers i;
  x = hn::Min(hn::Max(x, set(-104.0f)), set(89.0f));
  const auto n = hn::NearestInt(hn::Mul(x, set(1.44269504088896341f)));
  const FloatVec whole = hn::ConvertTo(f, n);
  FloatVec r = hn::NegMulAdd(whole, set(0.693359375f), x);  // ln 2 in two parts
  r = hn::NegMulAdd(whole, set(-2.12194440e-4f), r);
  FloatVec p = set(1.0f / 5040);
  p = hn::MulAdd(p, r, set(1.0f / 720));
  p = hn::MulAdd(p, r, set(1.0f / 120));
  p = hn::MulAdd(p, r, set(1.0f / 24));
  p = hn::MulAdd(p, r, set(1.0f / 6));
  p = hn::MulAdd(p, r, set(0.5f));
  p = hn::MulAdd(p, r, set(1.0f));
  p = hn::MulAdd(p, r, set(1.0f));
  const auto half = hn::ShiftRight<1>(n);  // 2^n in two factors: n may leave the exponent's range
  const auto bias = hn::Set(i, 127);
  const FloatVec a = hn::BitCast(f, hn::ShiftLeft<23>(hn::Add(half, bias)));
  const FloatVec b = hn::BitCast(f, hn::ShiftLeft<23>(hn::Add(hn::Sub(n, half), bias)));
  return hn::Mul(hn::Mul(p, a), b);
}

HWY_INLINE FloatVec sigmoid(FloatVec x) {
  return hn::Div(set(1.0f), hn::Add(set(1.0f), exp(hn::Neg(x))));
}

HWY_INLINE FloatVec silu(FloatVec x) {
  return hn::Div(x, hn::Add(set(1.0f), exp(hn::Neg(x))));
}

HWY_INLINE float sum_of_lanes(FloatVec v) {
  return hn::GetLane(hn::SumOfLanes(Floats(), v));
}
HWY_INLINE float max_of_lanes(FloatVec v) {
  return hn::GetLane(hn::MaxOfLanes(Floats(), v));
}

// The two BF16 values of a 32-bit lane of a packed panel.
HWY_INLINE FloatVec even_half(WordVec pair) {
  return hn::BitCast(Floats(), hn::ShiftLeft<16>(pair));
}
HWY_INLINE FloatVec odd_half(WordVec pair) {
  return hn::BitCast(Floats(), hn::And(pair, hn::Set(Words(), 0xffff0000u)));
}

// Adds half of the last kept bit's weight, to even.
template <int kShift>
HWY_INLINE WordVec round_off(WordVec bits) {
  const Words words;
  const WordVec last = hn::And(hn::ShiftRight<kShift>(bits), hn::Set(words, 1u));
  const WordVec half = hn::Set(words, (1u << (kShift - 1)) - 1);
  return hn::ShiftRight<kShift>(hn::Add(bits, hn::Add(half, last)));
}

HWY_INLINE WordVec encode_bf16(FloatVec x) {
  const Words words;
  const WordVec bits = hn::BitCast(words, x);
  const WordVec quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(words, 0x40u));
  return hn::IfThenElse(hn::RebindMask(words, hn::IsNaN(x)), quiet, round_off<16>(bits));
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif  // NIBBLE_SIMD_INL_H_
