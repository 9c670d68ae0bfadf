#include "backend/cpu/linear.h"

namespace nibble {
namespace {

constexpr int64_t kPanelGroup = kGroupPanels;

}  // namespace

void Linear::run(Tensor x, const Weight& w, Tensor out, bool accumulate) {
  CHECK(x.cols == w.cols && out.cols == w.rows && x.rows == out.rows, "%s", w.name.c_str());
  if (x.rows == 0) return;
  const Panels panels = packed(w).panels.first;
  const float* const* x_rows = row_pointers(x, x_rows_);
  float* const* out_rows = row_pointers(out, out_rows_);
  // The units of work: (block of rows, panel), panels fastest. Each thread takes a run of them.
  const int64_t block = rows_per_block(w.cols), count = panels.count();
  const int64_t blocks = (x.rows + block - 1) / block;
  const int64_t units = blocks * count;
  const int64_t group = units >= 4 * kPanelGroup * workers_.size() ? kPanelGroup : 1;
  workers_.run(x.rows * w.rows * w.cols, [&](int thread) {
    const Share share = workers_.share(thread, units, group);
    for (int64_t unit = share.first; unit < share.last;) {
      const int64_t b = unit / count, panel = unit % count;
      const int64_t last = std::min(count, panel + share.last - unit);
      const int64_t row = b * x.rows / blocks, end = (b + 1) * x.rows / blocks;
      workers_.multiply(thread, {.w = panels,
                                 .first_panel = panel,
                                 .last_panel = last,
                                 .x = x_rows + row,
                                 .out = out_rows + row,
                                 .rows = end - row,
                                 .accumulate = accumulate});
      unit += last - panel;
    }
  });
}

}  // namespace nibble
