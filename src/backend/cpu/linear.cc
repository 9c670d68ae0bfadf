#include "backend/cpu/linear.h"

namespace nibble {
namespace {

constexpr int64_t kPanelGroup = kGroupPanels;
constexpr int64_t kElementCost = 2;  // of an input row, in multiply-adds
// Fewer inputs than this each thread makes for itself, which is quicker than to meet.
constexpr int64_t kWorthMeeting = 16 << 10;

}  // namespace

InputRows CpuLinear::share_inputs(const Kernel& kernel, Tensor x, const PackedWeight& w) {
  const int64_t bytes = input_row_bytes(kernel.input, x.cols);
  const int64_t sets = std::max<int64_t>(1, int64_t(w.input_factors.size()) / x.cols);
  uint8_t* memory = inputs_.fit(size_t(sets * x.rows * bytes));
  workers_.run(sets * x.rows * x.cols * kElementCost, [&](int thread) {
    const Share share = workers_.share(thread, sets * x.rows);
    for (int64_t i = share.first; i < share.last; ++i) {
      const float* factors =
          w.input_factors.empty() ? nullptr : w.input_factors.data() + i / x.rows * x.cols;
      make_input_row(kernel.input, x.row<float>(i % x.rows), factors, x.cols, memory + i * bytes);
    }
  });
  return {memory, bytes};
}

void CpuLinear::run(Tensor x, const Weight& weight, Tensor out, bool accumulate) {
  CHECK(x.cols == weight.cols && out.cols == weight.rows && x.rows == out.rows, "%s",
        weight.name.c_str());
  if (x.rows == 0) return;
  const PackedWeight& w = packed(weight);
  const Panels panels = w.panels.first;
  if (panels.format == PanelFormat::kInt8) {
    CHECK(!accumulate, "%s", weight.name.c_str());
    return head_.run(x, weight, out);
  }
  const Kernel& kernel = workers_.kernel(panels.format, x.rows);
  const bool meet = kernel.input != InputFormat::kF32 && x.rows * x.cols >= kWorthMeeting;
  const InputRows shared = meet ? share_inputs(kernel, x, w) : InputRows();
  // The units of work: (block of rows, panel), panels fastest.
  const int64_t block = kernel.block_rows(x.cols), count = panels.count();
  const int64_t blocks = (x.rows + block - 1) / block;
  const int64_t units = blocks * count;
  const int64_t group = units >= 4 * kPanelGroup * workers_.size() ? kPanelGroup : 1;
  Pieces& pieces = workers_.deal(units, panels.lines * kLineBytes, group);
  workers_.run(x.rows * weight.rows * x.cols, [&](int thread) {
    InputRows inputs = shared;
    int set = -2;  // of the inputs that this thread made last
    for (Share piece = pieces.take(thread); !piece.empty();) {
      const int64_t b = piece.first / count, panel = piece.first % count;
      const PanelRun run =
          panel_run(w, w.panels, 0, panel, std::min(count, panel + piece.last - piece.first));
      if (!meet && run.set != set) inputs = workers_.make_inputs(thread, kernel, x, run.factors);
      set = run.set;
      const int64_t row = b * x.rows / blocks, end = (b + 1) * x.rows / blocks;
      const int64_t first_input = meet && set > 0 ? set * x.rows + row : row;
      workers_.multiply(thread, kernel,
                        {.w = panels,
                         .first_panel = panel,
                         .last_panel = run.last,
                         .x = {inputs.row(first_input), inputs.stride_bytes},
                         .rows = end - row,
                         .out = out.row<float>(row),
                         .out_stride = out.stride,
                         .accumulate = accumulate});
      piece.first += run.last - panel;
      if (piece.empty()) piece = pieces.take(thread);
    }
  });
}

}  // namespace nibble
