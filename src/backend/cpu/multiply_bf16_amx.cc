// out = x w^T of BF16 panels by BF16 tiles (AMX).
//                                          x [M, K] BF16 rows, w BF16 panels of 16 outputs
//
// A panel's lines are what tiles want as their second operand, as they lie there. Of two panels at
// a time, 256 columns stay in the L1 cache while 2 x 2 tiles of 16 rows by 16 outputs are summed
// over them, 32 columns a step, for all rows; the sums, which wait in memory meanwhile, are those
// of K undivided. Of the last step, which may have fewer lines, tiles are made that zeros fill.
//
// Two cores of a Xeon (Sapphire Rapids) guest, others computing beside, 512 rows by 2048 x 5120
// (backend_bench --threads=2 --benchmark_filter=wide): 0.41 of 5.04 TFLOP/s (8%); a whole prompt of
// 512 of the pocket model, most of it such products, 0.47 of 4.98, by FP32 0.14.
#include "backend/cpu/multiply.h"

#if defined(__x86_64__)

#include <cstring>

#include "backend/cpu/amx_tiles.h"

namespace nibble {
namespace {

using namespace amx;

constexpr int64_t kStepsAtOnce = 8;

}  // namespace

NIBBLE_AMX_CALLED void multiply_bf16_amx(const Product& product, Scratch<uint8_t>& scratch) {
  if (product.rows == 0) return;
  const Panels& w = product.w;
  const int64_t lines = (w.cols + 1) / 2, steps = lines / kTileRows, rest = lines % kTileRows;
  uint8_t* rest_tiles =
      scratch.fit(2 * kTileBytes + size_t(sums_size(product.rows)) * sizeof(float));
  float* sums = reinterpret_cast<float*>(rest_tiles + 2 * kTileBytes);
  std::memset(rest_tiles, 0, size_t(2 * kTileBytes));
  for (int64_t p = product.first_panel; p < product.last_panel;) {
    const int panels = p + 1 < product.last_panel && w.left_in_group(p) > 1 ? 2 : 1;
    Lines panel{.data = w.panel(p), .line_bytes = w.line_stride(p), .panel_bytes = kLineBytes};
    for (int64_t first = 0; first < steps; first += kStepsAtOnce) {
      const int64_t count = std::min(steps - first, kStepsAtOnce);
      add_steps(product, panels == 2, panel, first, count, sums);
      panel.data = panel.step(count);
    }
    for (int64_t line = 0; line < rest; ++line) {
      for (int i = 0; i < panels; ++i) {
        std::memcpy(rest_tiles + i * kTileBytes + line * kLineBytes,
                    panel.data + line * panel.line_bytes + i * kLineBytes, kLineBytes);
      }
    }
    if (rest > 0) {
      add_steps(product, panels == 2, {.data = rest_tiles, .panel_bytes = kTileBytes}, steps, 1,
                sums);
    }
    for (int i = 0; i < panels; ++i, ++p) {
      store_products(product, p, sums + i * kPanelRows,
                     w.row_scales == nullptr ? nullptr : w.row_scales + p * kPanelRows);
    }
  }
  _tile_release();
}

}  // namespace nibble

#endif
