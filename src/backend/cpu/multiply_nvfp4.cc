// out = x w^T of NVFP4 panels by 16-bit multiply-adds, on any vector machine.
//                                          x [M, K] 16-bit rows, w NVFP4 panels of 16 outputs
//
// The sums of multiply_nvfp4_avx512vnni.cc, bit for bit where multiply-adds are fused: integers are
// exact in any order, and the FP32 operations of an output are the same. Codes are looked up as
// bytes; a byte brought into the high half of its 16 bits is a factor 256 too large and has its
// sign, so that one shift and one mask make two vectors of factors. A tile is up to kMaxRows rows
// by one panel.
//
// Measured on one core of an EPYC (Zen 4) guest with AVX-512, from the L2 cache: one row 43
// Gweights/s (25 GB/s), 4 rows 126 GFLOP/s.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/multiply_nvfp4.cc"
#include <algorithm>
#include <cstring>

#include "backend/cpu/tiles.h"
#include "base/numbers.h"
#include "hwy/foreach_target.h"  // before simd-inl.h
// clang-format off
#include "backend/cpu/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace {  // names that other products have too

constexpr int kVecs = kPanelRows / kLanes;  // vectors a line
constexpr int kMaxRows = kLanes == 1 ? 1 : kVectorRegisters == 32 ? 8 / kVecs : 4 / kVecs;
constexpr float kRest = 1.0f / 512;  // 2^8 and 2 of the codes
alignas(16) constexpr int8_t kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

#if HWY_TARGET == HWY_SCALAR

// 2^8 times the products of an output's 16 columns.
template <int kRows>
HWY_INLINE void sum_group(const uint8_t* line, const int32_t* const* x, int64_t at,
                          FloatVec* sums) {
  const int16_t* input = reinterpret_cast<const int16_t*>(x[0] + at);
  int32_t sum = 0;
  for (int k = 0; k < 16; ++k) {
    const uint8_t byte = line[k / 8 * kLineBytes + k % 8 / 2];
    sum += kTwice[byte >> (k % 2 * 4) & 15] * input[k / 8 * 8 + k % 4 * 2 + k % 8 / 4];
  }
  sums[0] = set(float(sum * 256));
}

// The scales of group g of a vector of outputs' words.
HWY_INLINE FloatVec block_scales(const uint8_t* words, int g) {
  return set(e4m3_to_float(words[g]));
}

#else

using Bytes = hn::Repartition<uint8_t, Floats>;
using Shorts = hn::Repartition<int16_t, Floats>;
using UnsignedShorts = hn::RebindToUnsigned<Shorts>;
using ByteVec = hn::Vec<Bytes>;
using ShortVec = hn::Vec<Shorts>;
using IntegerVec = hn::Vec<Integers>;

// Products of a pair of inputs with a pair of factors a lane. The two sums together are the sum.
struct PairSum {
  IntegerVec low, high;
};

HWY_INLINE void add_pairs(ShortVec w, int32_t pair, PairSum& sum) {
  const ShortVec x = hn::BitCast(Shorts(), hn::Set(Integers(), pair));
  sum.low = hn::ReorderWidenMulAccumulate(Integers(), w, x, sum.low, sum.high);
}

// 8 columns of a vector of outputs: the inputs' four pairs at `x`.
template <int kRows>
HWY_INLINE void add_word(WordVec codes, ByteVec table, const int32_t* const* x, int64_t at,
                         PairSum* sum) {
  const Bytes bytes;
  const UnsignedShorts shorts;
  const ByteVec low_nibble = hn::Set(bytes, uint8_t(15));
#pragma GCC unroll 2
  for (int odd = 0; odd < 2; ++odd) {
    const ByteVec nibbles = hn::BitCast(bytes, odd ? hn::ShiftRight<4>(codes) : codes);
    const ByteVec values = hn::TableLookupBytes(table, hn::And(nibbles, low_nibble));
    const auto pairs = hn::BitCast(shorts, values);
    const ShortVec first = hn::BitCast(Shorts(), hn::ShiftLeft<8>(pairs));
    const ShortVec second =
        hn::BitCast(Shorts(), hn::And(pairs, hn::Set(shorts, uint16_t(0xff00))));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      add_pairs(first, x[r][at + odd], sum[r]);
      add_pairs(second, x[r][at + odd + 2], sum[r]);
    }
  }
}

// 2^8 times the products of a vector of outputs' 16 columns.
template <int kRows>
HWY_INLINE void sum_group(const uint8_t* line, const int32_t* const* x, int64_t at,
                          FloatVec* sums) {
  const ByteVec table = hn::LoadDup128(Bytes(), reinterpret_cast<const uint8_t*>(kTwice));
  PairSum sum[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sum[r].low = sum[r].high = hn::Zero(Integers());
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(line + half * kLineBytes);
    add_word<kRows>(hn::LoadU(Words(), words), table, x, at + half * 4, sum);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const auto whole = hn::RearrangeToOddPlusEven(sum[r].low, sum[r].high);
    sums[r] = hn::ConvertTo(Floats(), whole);
  }
}

// The scales of group g of a vector of outputs' words.
HWY_INLINE FloatVec block_scales(const uint8_t* words, int g) {
  const WordVec four = hn::LoadU(Words(), reinterpret_cast<const uint32_t*>(words));
  const WordVec code = hn::And(hn::ShiftRightSame(four, 8 * g), hn::Set(Words(), 0x7fu));
  return hn::Mul(hn::BitCast(Floats(), hn::ShiftLeft<20>(code)), set(0x1p120f));
}

#endif

// The first `count` outputs of a row of a panel.
HWY_INLINE void store_outputs(const FloatVec* y, int64_t count, bool accumulate, float* out) {
  HWY_ALIGN float whole[kPanelRows];
  for (int v = 0; v < kVecs; ++v) store(y[v], whole + v * kLanes);
  for (int64_t i = 0; i < count; ++i) out[i] = accumulate ? out[i] + whole[i] : whole[i];
}

template <int kRows>
HWY_NOINLINE void multiply_tile(const Product& product, int64_t first_row, int64_t p) {
  const Panels& w = product.w;
  const uint8_t* panel = w.panel(p);
  const int32_t* x[kRows];
  FloatVec total[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    x[r] = reinterpret_cast<const int32_t*>(product.x.row(first_row + r) + kInt16Header);
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) total[r][v] = zero();
  }
  const int64_t blocks = w.lines * kLineBytes / kNvfp4BlockBytes;
  const uint8_t* block = panel + kLineBytes;
  for (int64_t b = 0; b < blocks; ++b, block += kNvfp4BlockBytes) {
    for (int g = 0; g < 4; ++g) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        const uint8_t* line = block + (1 + g * 2) * kLineBytes + v * kLanes * 4;
        FloatVec sums[kRows];
        sum_group<kRows>(line, x, b * 32 + g * 8, sums);
        const FloatVec scale = block_scales(block + v * kLanes * 4, g);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          total[r][v] = hn::MulAdd(sums[r], scale, total[r][v]);
        }
      }
    }
  }
  const int64_t count = std::min<int64_t>(w.rows - p * kPanelRows, kPanelRows);
  for (int r = 0; r < kRows; ++r) {
    float row_scale;
    std::memcpy(&row_scale, product.x.row(first_row + r), sizeof(row_scale));
    for (int v = 0; v < kVecs; ++v) {
      const FloatVec tensor_scales = load(reinterpret_cast<const float*>(panel) + v * kLanes);
      total[r][v] = hn::Mul(total[r][v], hn::Mul(tensor_scales, set(row_scale * kRest)));
    }
    store_outputs(total[r], count, product.accumulate, product.output(first_row + r, p));
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

void multiply_nvfp4(const Product& product, Scratch<uint8_t>&) {
  HWY_DYNAMIC_DISPATCH(multiply)(product);
}

}  // namespace nibble
#endif
