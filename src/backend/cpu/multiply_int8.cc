// out = x w^T of INT8 panels by 16-bit multiply-adds.
//                                          x [M, K] 16-bit rows, w INT8 panels of 16 outputs
//
// Integer sums over 512 columns are exact (512 * 127 * 32639 < 2^31); they are added in FP32 in
// rising order. A tile is up to kMaxRows rows by one panel.
//
// Measured on two cores of an EPYC (Zen 4) guest: one row over 120 MB of weights 53 GB/s, 95% of
// what plain reading gives; 4 rows 34 GB/s. Zen 3 with AVX2: one row 94% of 27 GB/s, 4 rows 61%
// of 30.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/multiply_int8.cc"
#include <algorithm>
#include <cstring>

#include "backend/cpu/tiles.h"
#include "hwy/foreach_target.h"  // before simd-inl.h
// clang-format off
#include "backend/cpu/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace {  // names that other products have too

constexpr int kVecs = kPanelRows / kLanes;  // vectors of sums a panel
constexpr int kMaxRows = kLanes == 1 ? 1 : 8 / kVecs;
constexpr int64_t kExactLines = 128;

// Products of a word of factors with two pairs of inputs: its bytes 0 and 2 with the first, 1 and 3
// with the second.
#if HWY_TARGET == HWY_SCALAR

struct WordSum {
  int32_t sum = 0;

  HWY_INLINE void add(const int8_t* word, int32_t first, int32_t second) {
    sum += word[0] * int16_t(first & 0xffff) + word[2] * (first >> 16);
    sum += word[1] * int16_t(second & 0xffff) + word[3] * (second >> 16);
  }
  HWY_INLINE FloatVec total() const { return set(float(sum)); }
};

#else

struct WordSum {
  hn::Vec<Integers> low, high;

  HWY_INLINE WordSum() : low(hn::Zero(Integers())), high(hn::Zero(Integers())) {}
  HWY_INLINE void add(const int8_t* words, int32_t first, int32_t second) {
    const hn::Repartition<int16_t, Floats> shorts;
    const auto bytes = hn::LoadU(shorts, reinterpret_cast<const int16_t*>(words));
    const auto even = hn::ShiftRight<8>(hn::ShiftLeft<8>(bytes));
    const auto x = hn::BitCast(shorts, hn::Set(Integers(), first));
    low = hn::ReorderWidenMulAccumulate(Integers(), even, x, low, high);
    const auto y = hn::BitCast(shorts, hn::Set(Integers(), second));
    low = hn::ReorderWidenMulAccumulate(Integers(), hn::ShiftRight<8>(bytes), y, low, high);
  }
  HWY_INLINE FloatVec total() const {
    return hn::ConvertTo(Floats(), hn::RearrangeToOddPlusEven(low, high));
  }
};

#endif

template <int kRows>
HWY_INLINE void prefetch(const int8_t* line) {
  if (kVectorRegisters == 16) return prefetch_near(line);
  if (kRows > 2) prefetch_stream(line);
}

template <int kRows>
HWY_NOINLINE void multiply_tile(const Product& product, int64_t first_row, int64_t p) {
  const Panels& w = product.w;
  const uint8_t* panel = w.panel(p);
  const int32_t* x[kRows];
  FloatVec total[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    x[r] = reinterpret_cast<const int32_t*>(product.x.row(first_row + r) + kInt16Header);
    for (int v = 0; v < kVecs; ++v) total[r][v] = zero();
  }
  const int64_t lines = w.lines - 2;
  const int8_t* line = reinterpret_cast<const int8_t*>(panel + 2 * kLineBytes);
  for (int64_t first = 0; first < lines; first += kExactLines) {
    const int64_t last = std::min(lines, first + kExactLines);
    WordSum sum[kRows][kVecs];
    for (int64_t i = first; i < last; ++i, line += kLineBytes) {
      prefetch<kRows>(line);
      // Pairs of 8 columns: those of an even line's bytes, of an odd line's, then of the others.
      const int64_t at = i / 2 * 4 + i % 2;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < kVecs; ++v)
          sum[r][v].add(line + v * 4 * kLanes, x[r][at], x[r][at + 2]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) total[r][v] = hn::Add(total[r][v], sum[r][v].total());
    }
  }
  const int64_t count = std::min<int64_t>(w.rows - p * kPanelRows, kPanelRows);
  for (int r = 0; r < kRows; ++r) {
    float row_scale;
    std::memcpy(&row_scale, product.x.row(first_row + r), sizeof(row_scale));
    HWY_ALIGN float y[kPanelRows];
    for (int v = 0; v < kVecs; ++v) {
      const FloatVec scales = load(reinterpret_cast<const float*>(panel) + v * kLanes);
      store(hn::Mul(total[r][v], hn::Mul(scales, set(row_scale))), y + v * kLanes);
    }
    float* out = product.output(first_row + r, p);
    for (int64_t i = 0; i < count; ++i) out[i] = product.accumulate ? out[i] + y[i] : y[i];
  }
}

void multiply(const Product& product) {
  for_each_tile<kMaxRows>(product, [&](auto rows, int64_t first_row, int64_t p) {
    multiply_tile<rows()>(product, first_row, p);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(multiply);

void multiply_int8(const Product& product, Scratch<uint8_t>&) {
  HWY_DYNAMIC_DISPATCH(multiply)(product);
}

}  // namespace nibble
#endif
