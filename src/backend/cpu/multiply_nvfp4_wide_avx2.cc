// out = x w^T of NVFP4 panels by 16-bit multiply-adds, for many rows, on machines with AVX2.
//                                          x [M, K] 16-bit rows, w NVFP4 panels of 16 outputs
//
// The sums of multiply_nvfp4_avx2.cc, bit for bit. Some blocks of a panel are unpacked at a time,
// codes to 16-bit factors and scales to FP32, which stay in the L1 cache for all rows; of these a
// tile is up to kMaxRows, whose FP32 sums lie in memory between two times. A factor that is used by
// so many rows may take a whole product of 16 bits (vpmaddwd), of which a group needs 34
// instructions a row where bytes need 40.
//
// Measured on one core of an EPYC (Zen 3) guest, from the L2 cache: 48 rows 128 GFLOP/s, where FP32
// multiply-adds reach 95; as fast as the products of bytes with 5 rows, 1.25 times with 24.
#include "backend/cpu/tiles.h"

#if defined(__x86_64__)

#include "backend/cpu/nvfp4_avx2.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace nibble {
namespace {

using namespace avx2;

constexpr int kMaxRows = 4;
constexpr int kBlocks = 4;                               // unpacked at a time
constexpr int kGroups = 4;                               // of a block
constexpr int kPairs = 8;                                // of columns of a group
constexpr int kGroupFactors = kPairs * 2 * kPanelRows;   // 16-bit
constexpr int64_t kInputBlockBytes = 2 * kNvfp4Columns;  // of a row

// Blocks as the tiles read them.
struct Unpacked {
  alignas(
      64) int16_t factors[kBlocks * kGroups][kGroupFactors];  // pair, output, column of the pair
  alignas(64) float scales[kBlocks * kGroups][kPanelRows];
};

// 8 columns of a vector of outputs: pairs as inputs have them (0 and 4, 1 and 5, ...).
NIBBLE_AVX2 void unpack_words(__m256i words, int16_t* factors) {
  const __m256i twice = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
#pragma GCC unroll 2
  for (int odd = 0; odd < 2; ++odd) {
    const __m256i bytes = _mm256_shuffle_epi8(twice, nibbles_of(words, odd != 0));
    const __m256i first = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
    const __m256i second = _mm256_srai_epi16(bytes, 8);
    __m256i* to = reinterpret_cast<__m256i*>(factors + odd * 2 * kPanelRows);
    _mm256_store_si256(to, first);
    _mm256_store_si256(to + 2 * kVecs, second);  // two pairs on
  }
}

void unpack(const uint8_t* block, int64_t blocks, Unpacked& out) {
  for (int64_t i = 0; i < blocks * kGroups; ++i) {
    const uint8_t* scales = block + i / kGroups * kNvfp4BlockBytes;
    const int g = int(i % kGroups);
    const uint8_t* lines = scales + (1 + 2 * g) * kLineBytes;
    if (g == 0) prefetch_near(scales);
    for (int half = 0; half < 2; ++half, lines += kLineBytes) {
      prefetch_near(lines);
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) {
        unpack_words(load_vec(lines + v * kVecBytes),
                     out.factors[i] + half * kGroupFactors / 2 + v * kPanelRows);
      }
    }
    for (int v = 0; v < kVecs; ++v) {
      _mm256_store_ps(out.scales[i] + v * 8, block_scales(scales + v * kVecBytes, g));
    }
  }
}

// Adds the products of `groups` groups to the sums [kRows][16] of rows whose inputs of these groups
// lie at x. Products are added in the order in which they are written: g++ would add them in pairs,
// and spill.
template <int kRows>
__attribute__((noinline)) void multiply_tile(const uint8_t* const* x, const Unpacked& w,
                                             int64_t groups, float* sums) {
  __m256 total[kRows][kVecs];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) total[r][v] = _mm256_load_ps(sums + (r * kVecs + v) * 8);
  }
  for (int64_t g = 0; g < groups; ++g) {
    __m256i sum[kRows][kVecs];
#pragma GCC unroll 8
    for (int pair = 0; pair < kPairs; ++pair) {
      const int16_t* factors = w.factors[g] + pair * 2 * kPanelRows;
      const __m256i first = load_vec(factors), second = load_vec(factors + kPanelRows);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const __m256i inputs = set_word(x[r] + (g * kPairs + pair) * 4);
        const __m256i a = _mm256_madd_epi16(first, inputs), b = _mm256_madd_epi16(second, inputs);
        sum[r][0] = pair == 0 ? a : _mm256_add_epi32(sum[r][0], a);
        sum[r][1] = pair == 0 ? b : _mm256_add_epi32(sum[r][1], b);
        __asm__ volatile("" : "+x"(sum[r][0]), "+x"(sum[r][1]));
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) {
      const __m256 scales = _mm256_load_ps(w.scales[g] + v * 8);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        total[r][v] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][v]), scales, total[r][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) _mm256_store_ps(sums + (r * kVecs + v) * 8, total[r][v]);
  }
}

// All rows by the blocks that are unpacked, from block `first` on.
void multiply_blocks(const Product& product, const Unpacked& w, int64_t first, int64_t blocks,
                     float* sums) {
  const int64_t tiles = (product.rows + kMaxRows - 1) / kMaxRows;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t row = product.rows * i / tiles, end = product.rows * (i + 1) / tiles;
    const uint8_t* x[kMaxRows];
    for (int64_t r = row; r < end; ++r) {
      x[r - row] = product.x.row(r) + kInt16Header + first * kInputBlockBytes;
    }
    with_constant<kMaxRows>(end - row, [&](auto count) {
      multiply_tile<count()>(x, w, blocks * kGroups, sums + row * kPanelRows);
    });
  }
}

}  // namespace

void multiply_nvfp4_wide_avx2(const Product& product, Scratch<uint8_t>& scratch) {
  const size_t sums_bytes = size_t(product.rows * kPanelRows) * sizeof(float);
  uint8_t* memory = scratch.fit(sizeof(Unpacked) + sums_bytes);
  Unpacked& unpacked = *reinterpret_cast<Unpacked*>(memory);
  float* sums = reinterpret_cast<float*>(memory + sizeof(Unpacked));
  const int64_t blocks = product.w.lines * kLineBytes / kNvfp4BlockBytes;
  for (int64_t p = product.first_panel; p < product.last_panel; ++p) {
    const uint8_t* block = product.w.panel(p) + kLineBytes;
    std::memset(sums, 0, sums_bytes);
    for (int64_t b = 0; b < blocks; b += kBlocks) {
      const int64_t count = std::min<int64_t>(kBlocks, blocks - b);
      unpack(block + b * kNvfp4BlockBytes, count, unpacked);
      multiply_blocks(product, unpacked, b, count, sums);
    }
    for (int64_t r = 0; r < product.rows; ++r) {
      const float* of_row = sums + r * kPanelRows;
      const __m256 both[kVecs] = {_mm256_load_ps(of_row), _mm256_load_ps(of_row + 8)};
      store_outputs(product, r, p, both);
    }
  }
}

}  // namespace nibble

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
