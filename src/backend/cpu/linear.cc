#include "backend/cpu/linear.h"

namespace nibble {
namespace {

constexpr int64_t kPanelGroup = kGroupPanels;
constexpr int64_t kElementCost = 2;  // of an input row, in multiply-adds
// Fewer inputs than this each thread makes for itself, which is quicker than to meet.
constexpr int64_t kWorthMeeting = 16 << 10;

}  // namespace

InputRows Linear::share_inputs(const Kernel& kernel, Tensor x) {
  const int64_t bytes = input_row_bytes(kernel.input, x.cols);
  uint8_t* memory = inputs_.fit(size_t(x.rows * bytes));
  workers_.run(x.rows * x.cols * kElementCost, [&](int thread) {
    const Share share = workers_.share(thread, x.rows);
    for (int64_t r = share.first; r < share.last; ++r) {
      make_input_row(kernel.input, x.row<float>(r), x.cols, memory + r * bytes);
    }
  });
  return {memory, bytes};
}

void Linear::run(Tensor x, const Weight& w, Tensor out, bool accumulate) {
  CHECK(x.cols == w.cols && out.cols == w.rows && x.rows == out.rows, "%s", w.name.c_str());
  if (x.rows == 0) return;
  const Panels panels = packed(w).panels.first;
  if (panels.format == PanelFormat::kInt8) {
    CHECK(!accumulate, "%s", w.name.c_str());
    return head_.run(x, w, out);
  }
  const Kernel& kernel = workers_.kernel(panels.format);
  const bool meet = kernel.input != InputFormat::kF32 && x.rows * x.cols >= kWorthMeeting;
  const InputRows shared = meet ? share_inputs(kernel, x) : InputRows();
  // The units of work: (block of rows, panel), panels fastest. Each thread takes a run of them.
  const int64_t block = rows_per_block(w.cols), count = panels.count();
  const int64_t blocks = (x.rows + block - 1) / block;
  const int64_t units = blocks * count;
  const int64_t group = units >= 4 * kPanelGroup * workers_.size() ? kPanelGroup : 1;
  workers_.run(x.rows * w.rows * w.cols, [&](int thread) {
    const Share share = workers_.share(thread, units, group);
    if (share.empty()) return;
    const InputRows inputs = meet ? shared : workers_.make_inputs(thread, kernel, x);
    for (int64_t unit = share.first; unit < share.last;) {
      const int64_t b = unit / count, panel = unit % count;
      const int64_t last = std::min(count, panel + share.last - unit);
      const int64_t row = b * x.rows / blocks, end = (b + 1) * x.rows / blocks;
      workers_.multiply(thread, kernel,
                        {.w = panels,
                         .first_panel = panel,
                         .last_panel = last,
                         .x = {inputs.row(row), inputs.stride_bytes},
                         .rows = end - row,
                         .out = out.row<float>(row),
                         .out_stride = out.stride,
                         .accumulate = accumulate});
      unit += last - panel;
    }
  });
}

}  // namespace nibble
