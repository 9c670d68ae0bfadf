// out = x w^T of BF16 panels by BF16 tiles (AMX).
//                                          x [M, K] BF16 rows, w BF16 panels of 16 outputs
//
// A panel's lines are what tiles want as their second operand, but for those of other panels
// between them: 1,024 columns of two panels are copied together, zeros for lines that the last step
// lacks. The rest is as multiply_nvfp4_amx.cc says.
//
// Two cores of a Xeon (Sapphire Rapids) guest, others computing beside, 512 rows by 2048 x 5120,
// median of six runs (backend_bench --threads=2 --benchmark_filter=wide): 0.89 of 5.5 TFLOP/s
// (16%).
#include "backend/cpu/multiply.h"

#if defined(__x86_64__)

#include <cstring>

#include "backend/cpu/amx_tiles.h"

namespace nibble {
namespace {

using namespace amx;

constexpr int64_t kStepsAtOnce = 32;

// Lines of panel p from `first` on, one after another; of those that a step lacks, zeros.
NIBBLE_AMX_CALLED void copy_lines(const Panels& w, int64_t p, int64_t first, int64_t count,
                                  uint8_t* out) {
  const int64_t stride = w.line_stride(p), left = (w.cols + 1) / 2 - first;
  const uint8_t* line = w.panel(p) + first * stride;
  for (int64_t i = 0; i < std::min(count, left); ++i, line += stride, out += kLineBytes) {
    _mm512_store_si512(out, _mm512_load_si512(line));
  }
  if (left < count) std::memset(out, 0, size_t((-left & (kTileRows - 1)) * kLineBytes));
  asm volatile("" : : : "memory");  // else g++ 12 takes this for a function without effects
}

}  // namespace

NIBBLE_AMX_CALLED void multiply_bf16_amx(const Product& product, Scratch<uint8_t>& scratch) {
  const Panels& w = product.w;
  const auto make_strip = [&](int64_t p, int64_t first_step, uint8_t* strip) {
    copy_lines(w, p, first_step * kTileRows, kStepsAtOnce * kTileRows, strip);
  };
  const auto scales_of = [&](int64_t p) {
    return w.row_scales == nullptr ? nullptr : w.row_scales + p * kPanelRows;
  };
  multiply_strips<kStepsAtOnce>(product, scratch, make_strip, scales_of);
}

}  // namespace nibble

#endif
