// out = x w^T of NVFP4 panels whose outputs are the stored columns, in FP32 arithmetic.
//                                          x [M, K] rows, w kNvfp4Columns panels of 16 outputs
//
//   out[n] = tensor_scale[n] * sum over k of code[n][k] * (x[k] * s[k])
//
// All outputs of a panel share the scale s[k], so that it multiplies the input, 64 columns at a
// time. An output has four sums, of the columns 0 and 4, 1 and 5, ... of 8: a chain of its own
// each, to hide the latency of multiply-adds. A tile is up to kMaxRows rows by one vector of
// outputs.
//
// Measured on one core of an EPYC (Zen 4) guest, panels of 192 columns in the L2 cache: one row 23
// Gweights/s (13 GB/s), in a model's decode on two cores 24 GB/s.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/multiply_nvfp4_columns.cc"
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

constexpr int kVecs = kPanelRows / kLanes;  // vectors a line
constexpr int kMaxRows = kVectorRegisters == 32 ? 4 : 2;
constexpr int kSums = 4;  // of an output

struct Pair {
  FloatVec first, second;
};

#if HWY_TARGET <= HWY_AVX3

constexpr float kRest = 1;

using Codes = WordVec;

HWY_INLINE Codes open(WordVec words) {
  return words;
}

// The columns i and i + 4 of a vector of words: 16 bits of each lane look up a BF16 number.
HWY_INLINE Pair look_up(Codes words, int i) {
  alignas(64) static constexpr uint16_t kBF16[32] = {
      0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,  //
      0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0,  //
      0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,  //
      0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0};
  const __m512i codes = _mm512_srli_epi32(words.raw, 4 * i);
  const WordVec halves{_mm512_permutexvar_epi16(codes, _mm512_load_si512(kBF16))};
  return {even_half(halves), odd_half(halves)};
}

#else

constexpr float kRest = 0x1p-25f;  // 2^24 and 2 of the codes
alignas(16) constexpr int8_t kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

#if HWY_TARGET == HWY_SCALAR

using Codes = WordVec;

HWY_INLINE Codes open(WordVec words) {
  return words;
}

HWY_INLINE FloatVec look_up_column(Codes words, int i) {
  return set(float(kTwice[hn::GetLane(words) >> (4 * i) & 15]) * 0x1p24f);
}

HWY_INLINE Pair look_up(Codes words, int i) {
  return {look_up_column(words, i), look_up_column(words, i + 4)};
}

#else

// Twice the values of a vector of words: a byte each, of the low nibbles and of the high ones.
struct Codes {
  WordVec low, high;
};

HWY_INLINE Codes open(WordVec words) {
  const hn::Repartition<uint8_t, Floats> bytes;
  const auto table = hn::LoadDup128(bytes, reinterpret_cast<const uint8_t*>(kTwice));
  const auto nibbles = [&](WordVec v) HWY_ATTR {
    return hn::And(hn::BitCast(bytes, v), hn::Set(bytes, uint8_t(15)));
  };
  const auto low = hn::TableLookupBytes(table, nibbles(words));
  const auto high = hn::TableLookupBytes(table, nibbles(hn::ShiftRight<4>(words)));
  return {hn::BitCast(Words(), low), hn::BitCast(Words(), high)};
}

// 2^25 times the values of the words' highest bytes.
HWY_INLINE FloatVec highest_bytes(WordVec words) {
  const WordVec highest = hn::And(words, hn::Set(Words(), 0xff000000u));
  return hn::ConvertTo(Floats(), hn::BitCast(Integers(), highest));
}

HWY_INLINE Pair look_up(const Codes& codes, int i) {
  const WordVec bytes = i % 2 == 0 ? codes.low : codes.high;
  if (i < 2) {
    const auto first = hn::BitCast(Integers(), hn::ShiftLeft<24>(bytes));
    return {hn::ConvertTo(Floats(), first), highest_bytes(hn::ShiftLeft<8>(bytes))};
  }
  return {highest_bytes(hn::ShiftLeft<16>(bytes)), highest_bytes(bytes)};
}

#endif

#endif

// out[i] = x[i] * e4m3[i] for the columns of a block, 0 from `count` on.
HWY_INLINE void scale_block(const float* x, const uint8_t* e4m3, int64_t count, float* out) {
  HWY_ALIGN float rest[kNvfp4Columns];
  if (count < kNvfp4Columns) {
    std::memset(rest, 0, sizeof(rest));
    std::memcpy(rest, x, size_t(count) * sizeof(float));
    x = rest;
  }
  const hn::Rebind<uint8_t, Words> bytes;
  for (int i = 0; i < kNvfp4Columns; i += kLanes) {
    const WordVec code = hn::PromoteTo(Words(), hn::LoadU(bytes, e4m3 + i));
    const FloatVec scale = hn::Mul(hn::BitCast(Floats(), hn::ShiftLeft<20>(code)), set(0x1p120f));
    store(hn::Mul(load(x + i), scale), out + i);
  }
}

// The inputs of `rows` rows for panel p: [rows][padded columns].
void scale_rows(const Product& product, int64_t p, int64_t first_row, int rows, float* out) {
  const Panels& w = product.w;
  for (int r = 0; r < rows; ++r) {
    const float* x = reinterpret_cast<const float*>(product.x.row(first_row + r));
    const uint8_t* block = w.panel(p) + kLineBytes;
    for (int64_t k = 0; k < w.cols; k += kNvfp4Columns, block += kNvfp4BlockBytes) {
      scale_block(x + k, block, std::min<int64_t>(w.cols - k, kNvfp4Columns), out);
      out += kNvfp4Columns;
    }
  }
}

// `kStream`: the panel is read once.
template <int kRows, bool kStream>
HWY_NOINLINE void multiply_tile(const Product& product, int64_t first_row, int64_t p,
                                const float* inputs) {
  const Panels& w = product.w;
  const uint8_t* panel = w.panel(p);
  const int64_t outputs = w.rows - p * kPanelRows;
  const int64_t blocks = (w.cols + kNvfp4Columns - 1) / kNvfp4Columns;
  for (int v = 0; v < kVecs; ++v) {
    FloatVec sum[kRows][kSums];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kSums; ++i) sum[r][i] = zero();
    }
    const float* x = inputs;
    const uint8_t* line = panel + kLineBytes + v * kLanes * 4;
    for (int64_t b = 0; b < blocks; ++b) {
      if (kStream && v == 0) prefetch_stream(line);
      line += kLineBytes;  // the scales
#pragma GCC unroll 2
      for (int word = 0; word < kNvfp4Columns / 8; ++word, line += kLineBytes, x += 8) {
        if (kStream && v == 0) prefetch_stream(line);
        const Codes codes = open(hn::LoadU(Words(), reinterpret_cast<const uint32_t*>(line)));
#pragma GCC unroll 4
        for (int i = 0; i < kSums; ++i) {
          const Pair factors = look_up(codes, i);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) {
            const float* at = x + r * blocks * kNvfp4Columns + i;
            sum[r][i] = hn::MulAdd(factors.first, set(at[0]), sum[r][i]);
            sum[r][i] = hn::MulAdd(factors.second, set(at[4]), sum[r][i]);
          }
        }
      }
    }
    const FloatVec scales =
        hn::Mul(load(reinterpret_cast<const float*>(panel) + v * kLanes), set(kRest));
    const int64_t stored = std::clamp<int64_t>(outputs - v * kLanes, 0, kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      HWY_ALIGN float whole[kLanes];
      const FloatVec total = hn::Add(hn::Add(sum[r][0], sum[r][1]), hn::Add(sum[r][2], sum[r][3]));
      store(hn::Mul(total, scales), whole);
      float* out = product.output(first_row + r, p) + v * kLanes;
      for (int64_t i = 0; i < stored; ++i)
        out[i] = product.accumulate ? out[i] + whole[i] : whole[i];
    }
  }
}

void multiply(const Product& product, Scratch<uint8_t>& scratch) {
  const int64_t cols = (product.w.cols + kNvfp4Columns - 1) / kNvfp4Columns * kNvfp4Columns;
  float* inputs = reinterpret_cast<float*>(scratch.fit(size_t(kMaxRows * cols) * sizeof(float)));
  for_each_tile<kMaxRows>(product, [&](auto rows, int64_t first_row, int64_t p) {
    scale_rows(product, p, first_row, rows(), inputs);
    if (product.rows == rows()) {
      multiply_tile<rows(), true>(product, first_row, p, inputs);
    } else {
      multiply_tile<rows(), false>(product, first_row, p, inputs);
    }
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(multiply);

void multiply_nvfp4_columns(const Product& product, Scratch<uint8_t>& scratch) {
  HWY_DYNAMIC_DISPATCH(multiply)(product, scratch);
}

}  // namespace nibble
#endif
