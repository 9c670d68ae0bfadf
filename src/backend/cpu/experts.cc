// out[t] = sum over k of weights[t, k] * down[e] silu_mul(gate_up[e] x[t]),  e = experts[t, k]
//
// Pairs (row, slot) are sorted by expert, so that an expert's panels are read once for all its
// rows.
//   1. inner[pair] = silu(gate x) * (up x): units (expert, 16 columns of the width)
//   2. outer[pair] = down inner:            units (expert, panel of the hidden size)
//   3. out[t] = weights[t, 0] * outer + weights[t, 1] * outer + ...: in the order of the slots
// Threads take runs of units of about the same cost (pieces.h).
#include "backend/cpu/experts.h"

#include <algorithm>
#include <optional>

#include "backend/cpu/rows.h"

namespace nibble {
namespace {

// Reading an expert's panels costs about as much as computing this many rows.
constexpr int64_t kReadCost = 2;
constexpr int64_t kChunksAtOnce = 12;  // of 16 columns of the width, at most, in one go

}  // namespace

void Experts::sort_by_expert(const Routing& routing, int64_t num_experts) {
  const int64_t rows = routing.experts.rows, slots = routing.experts.cols;
  first_pair_.assign(size_t(num_experts) + 1, 0);
  place_.resize(size_t(rows * slots));
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t k = 0; k < slots; ++k) {
      const int32_t e = routing.experts.row<int32_t>(t)[k];
      CHECK(e >= 0 && e < num_experts, "expert %d of %ld", int(e), long(num_experts));
      ++first_pair_[size_t(e) + 1];
    }
  }
  for (size_t e = 0; e < size_t(num_experts); ++e) first_pair_[e + 1] += first_pair_[e];
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t k = 0; k < slots; ++k) {
      const int32_t e = routing.experts.row<int32_t>(t)[k];
      place_[size_t(t * slots + k)] = first_pair_[size_t(e)]++;
    }
  }
  for (size_t e = size_t(num_experts); e > 0; --e) first_pair_[e] = first_pair_[e - 1];
  first_pair_[0] = 0;
}

int64_t Experts::cost_of(int64_t e) const {
  const int64_t pairs = first_pair_[size_t(e) + 1] - first_pair_[size_t(e)];
  return pairs == 0 ? 0 : pairs + kReadCost;
}

Pieces& Experts::deal(int64_t units, int64_t unit_bytes) {
  int64_t total = 0, used = 0;
  for (int64_t e = 0; e + 1 < int64_t(first_pair_.size()); ++e) {
    total += cost_of(e) * units;
    used += cost_of(e) > 0;
  }
  return workers_.deal(total, used * units * unit_bytes / std::max<int64_t>(total, 1));
}

template <typename Body>
void Experts::for_each_run(Share costs, int64_t units, Body&& body) const {
  const int64_t num_experts = int64_t(first_pair_.size()) - 1;
  int64_t start = 0;  // cost of all experts before e
  for (int64_t e = 0; e < num_experts && start < costs.last; ++e) {
    const int64_t cost = cost_of(e);
    if (cost == 0) continue;
    // A unit belongs to the piece in which it begins.
    const auto first_from = [&](int64_t at) {
      return at <= start ? 0 : std::min(units, (at - start + cost - 1) / cost);
    };
    const int64_t first = first_from(costs.first), last = first_from(costs.last);
    if (first < last) body(e, first, last);
    start += cost * units;
  }
}

InputRows Experts::inputs_of(Rows& rows, const PanelRun& run, int64_t cols) {
  for (int slot = 0; slot < 2; ++slot) {
    if (rows.sets[slot] == run.set) return rows.inputs[slot];
  }
  const int slot = rows.next;
  rows.next ^= 1;
  const int64_t bytes = input_row_bytes(rows.kernel.input, cols);
  uint8_t* memory = workers_.input_memory(rows.thread, rows.count * bytes, slot);
  for (int64_t i = 0; i < rows.count; ++i) {
    make_input_row(rows.kernel.input, rows.x[rows.first_pair + i], run.factors, cols,
                   memory + i * bytes);
  }
  rows.sets[slot] = run.set;
  rows.inputs[slot] = {memory, bytes};
  return rows.inputs[slot];
}

void Experts::multiply(Rows& rows, const PackedWeight& w, int64_t expert, int64_t first,
                       int64_t last, float* out, int64_t out_stride, int64_t first_output) {
  const Panels panels = w.panels.matrix(expert);
  while (first < last) {
    const PanelRun run = panel_run(w, w.panels, expert, first, last);
    workers_.multiply(rows.thread, rows.kernel,
                      {.w = panels,
                       .first_panel = first,
                       .last_panel = run.last,
                       .x = inputs_of(rows, run, panels.cols),
                       .rows = rows.count,
                       .out = out,
                       .out_stride = out_stride,
                       .first_output = first_output});
    first = run.last;
  }
}

void Experts::compute_inner(int thread, Pieces& pieces, const Weight& gate_up, int64_t width) {
  const PackedWeight& w = packed(gate_up);
  const int64_t chunks = (width + kPanelRows - 1) / kPanelRows;
  constexpr int64_t kSize = 2 * kChunksAtOnce * kPanelRows;
  std::optional<Rows> rows;  // the last ones, whose inputs are made
  const auto run = [&](int64_t e, int64_t first_chunk, int64_t last_chunk) {
    const int64_t end_pair = first_pair_[size_t(e) + 1];
    const Kernel& kernel =
        workers_.kernel(w.panels.first.format, end_pair - first_pair_[size_t(e)]);
    const int64_t block = kernel.block_rows(gate_up.cols);
    float* both = wide_[size_t(thread)].fit(size_t(block * kSize));
    for (int64_t p = first_pair_[size_t(e)]; p < end_pair; p += block) {
      if (!rows || rows->first_pair != p) {
        rows.emplace(Rows{.thread = thread,
                          .kernel = kernel,
                          .first_pair = p,
                          .count = std::min(block, end_pair - p),
                          .x = x_rows_.data()});
      }
      for (int64_t c = first_chunk; c < last_chunk; c += kChunksAtOnce) {
        const int64_t end = std::min(c + kChunksAtOnce, last_chunk), column = c * kPanelRows;
        multiply(*rows, w, e, 2 * c, 2 * end, both, kSize, 2 * column);
        for (int64_t r = 0; r < rows->count; ++r) {
          silu_mul_panels_row(both + r * kSize, std::min(width, end * kPanelRows) - column,
                              inner_.data() + (p + r) * width + column);
        }
      }
    }
  };
  for (Share costs = pieces.take(thread); !costs.empty(); costs = pieces.take(thread)) {
    for_each_run(costs, chunks, run);
  }
}

void Experts::compute_outer(int thread, Pieces& pieces, const Weight& down) {
  const PackedWeight& w = packed(down);
  std::optional<Rows> rows;
  const auto run = [&](int64_t e, int64_t first, int64_t last) {
    const int64_t p = first_pair_[size_t(e)], count = first_pair_[size_t(e) + 1] - p;
    if (!rows || rows->first_pair != p) {
      rows.emplace(Rows{.thread = thread,
                        .kernel = workers_.kernel(w.panels.first.format, count),
                        .first_pair = p,
                        .count = count,
                        .x = inner_rows_.data()});
    }
    multiply(*rows, w, e, first, last, outer_.data() + p * down.rows, down.rows, 0);
  };
  for (Share costs = pieces.take(thread); !costs.empty(); costs = pieces.take(thread)) {
    for_each_run(costs, w.panels.first.count(), run);
  }
}

void Experts::combine(const Routing& routing, int64_t row, Tensor out) const {
  const int64_t slots = routing.experts.cols;
  const float* weights = routing.weights.row<float>(row);
  float* to = out.row<float>(row);
  std::fill_n(to, out.cols, 0.0f);
  for (int64_t k = 0; k < slots; ++k) {
    const float* from = outer_.data() + place_[size_t(row * slots + k)] * out.cols;
    add_scaled_row(from, weights[k], out.cols, to);
  }
}

void Experts::run(Tensor x, const Routing& routing, const Weight& gate_up, const Weight& down,
                  Tensor out) {
  const int64_t slots = routing.experts.cols, pairs = x.rows * slots;
  const int64_t width = down.cols, hidden = down.rows;
  CHECK(x.cols == gate_up.cols && gate_up.rows == 2 * width && out.cols == hidden &&
            gate_up.use == Use::kGatedExperts && gate_up.count == down.count,
        "%s", gate_up.name.c_str());
  if (pairs == 0) return;
  sort_by_expert(routing, gate_up.count);

  const float** x_rows = x_rows_.fit(size_t(pairs));
  for (int64_t i = 0; i < pairs; ++i) x_rows[place_[size_t(i)]] = x.row<float>(i / slots);
  const float* inner = inner_.fit(size_t(pairs * width));
  const float** inner_rows = inner_rows_.fit(size_t(pairs));
  for (int64_t p = 0; p < pairs; ++p) inner_rows[p] = inner + p * width;
  outer_.fit(size_t(pairs * hidden));

  const int64_t work = pairs * width * hidden;
  const Panels gates = packed(gate_up).panels.first, downs = packed(down).panels.first;
  Pieces& inner_pieces = deal((width + kPanelRows - 1) / kPanelRows, 2 * gates.lines * kLineBytes);
  workers_.run(2 * work, [&](int thread) { compute_inner(thread, inner_pieces, gate_up, width); });
  Pieces& outer_pieces = deal(downs.count(), downs.lines * kLineBytes);
  workers_.run(work, [&](int thread) { compute_outer(thread, outer_pieces, down); });
  workers_.run(pairs * hidden, [&](int thread) {
    const Share rows = workers_.share(thread, x.rows);
    for (int64_t t = rows.first; t < rows.last; ++t) combine(routing, t, out);
  });
}

}  // namespace nibble
