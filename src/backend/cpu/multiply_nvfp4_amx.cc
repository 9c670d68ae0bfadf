// out = x w^T of NVFP4 panels by BF16 tiles (AMX).
//                                          x [M, K] BF16 rows, w NVFP4 panels of 16 outputs
//
// Of two panels at a time, 1,024 columns are decoded to BF16, code times block scale being exact,
// into lines of a pair (2k, 2k + 1) of 16 outputs, as tiles want their second operand. Then 2 x 2
// tiles of 16 rows by 16 outputs are summed over them, 32 columns a step, for all rows; the sums,
// which wait in memory meanwhile, are those of K undivided. Eight panels take the same 1,024
// columns before the next, so that of the rows these alone need the L2 cache. Fewer rows make
// smaller tiles with the same sums. The tensor's scale multiplies the sum. For products of many
// rows only (Backend::wide_rows): decoding costs as much as 50 rows.
//
// Two cores of a Xeon (Sapphire Rapids) guest, others computing beside, medians of six runs
// (backend_bench --threads=2): 512 rows by 2048 x 5120 1.08 of 5.5 TFLOP/s (20%), 48 experts of 43
// rows 0.67 (12%). Tiles that the L1 cache holds reach 75% of a core's peak at times there, 25% at
// others, the peak from registers being the same.
#include "backend/cpu/multiply.h"

#if defined(__x86_64__)

#include "backend/cpu/amx_tiles.h"

namespace nibble {
namespace {

using namespace amx;

constexpr int64_t kBlocksAtOnce = 16;  // of kNvfp4Columns
constexpr int64_t kBlockLineBytes = kNvfp4Columns / 2 * kLineBytes;
constexpr int64_t kBlockSteps = kNvfp4Columns / kStepColumns;

// The codes of some blocks of a panel times their block scales as pairs of BF16: a line for two
// columns.
NIBBLE_AMX_CALLED void decode_blocks(const uint8_t* block, int64_t blocks, uint8_t* out) {
  alignas(64) static constexpr float kValues[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,
                                                    4.0f,  6.0f,  -0.0f, -0.5f, -1.0f, -1.5f,
                                                    -2.0f, -3.0f, -4.0f, -6.0f};
  const __m512 table = _mm512_load_ps(kValues);
  const __m512i high_half = _mm512_set1_epi32(int(0xffff0000u));
  for (int64_t b = 0; b < blocks; ++b, block += kNvfp4BlockBytes) {
    const __m512i scales = _mm512_load_si512(block);
    for (int g = 0; g < 4; ++g) {
      const __m512i code = _mm512_and_si512(_mm512_srlv_epi32(scales, _mm512_set1_epi32(8 * g)),
                                            _mm512_set1_epi32(0x7f));
      const __m512 scale =
          _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(code, 20)), _mm512_set1_ps(0x1p120f));
      for (int half = 0; half < 2; ++half) {
        __m512i word = _mm512_load_si512(block + (1 + g * 2 + half) * kLineBytes);
#pragma GCC unroll 4
        for (int pair = 0; pair < 4; ++pair, out += kLineBytes) {
          const __m512 even = _mm512_mul_ps(_mm512_permutexvar_ps(word, table), scale);
          word = _mm512_srli_epi32(word, 4);
          const __m512 odd = _mm512_mul_ps(_mm512_permutexvar_ps(word, table), scale);
          word = _mm512_srli_epi32(word, 4);
          const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
          const __m512i high = _mm512_and_si512(_mm512_castps_si512(odd), high_half);
          _mm512_store_si512(out, _mm512_or_si512(low, high));
        }
      }
    }
  }
  asm volatile("" : : : "memory");  // else g++ 12 takes this for a function without effects
}

}  // namespace

NIBBLE_AMX_CALLED void multiply_nvfp4_amx(const Product& product, Scratch<uint8_t>& scratch) {
  const Panels& w = product.w;
  const int64_t blocks = w.lines * kLineBytes / kNvfp4BlockBytes;
  const auto make_strip = [&](int64_t p, int64_t first_step, uint8_t* strip) {
    const int64_t first = first_step / kBlockSteps;
    decode_blocks(w.panel(p) + kLineBytes + first * kNvfp4BlockBytes,
                  std::min(blocks - first, kBlocksAtOnce), strip);
  };
  const auto scales_of = [&](int64_t p) { return reinterpret_cast<const float*>(w.panel(p)); };
  multiply_strips<kBlocksAtOnce * kBlockSteps>(product, scratch, make_strip, scales_of);
}

NIBBLE_AMX_CALLED double dot_registers_amx(int64_t rounds) {
  configure_tiles(2 * kTileRows);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return double(rounds) * 4 * kTileRows * kPanelRows * kStepColumns * 2;
}

}  // namespace nibble

#endif
