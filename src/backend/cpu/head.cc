#include "backend/cpu/head.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/rows.h"

namespace nibble {
namespace {

constexpr double kRounding = 0x1p-24;
constexpr int64_t kPanelsAhead = 16;

const float* errors_of(const Panels& panels, int64_t p) {
  return reinterpret_cast<const float*>(panels.panel(p) + kLineBytes);
}

}  // namespace

void Head::bound_inputs(Tensor x, const PackedWeight& head, InputFormat format, InputRows inputs) {
  bounds_.resize(size_t(x.rows));
  for (int64_t t = 0; t < x.rows; ++t) {
    const auto [norm, error] = input_norms(format, x.row<float>(t), inputs.row(t), x.cols);
    // A sum of K / 512 exact integers, each rounded, times two scales.
    const double sums = double(x.cols / 512 + 8) * kRounding * norm;
    bounds_[size_t(t)] = {.row_norm = float(norm * (1 + 1e-6)),
                          .rest = float((error + sums) * double(head.largest_norm) * (1 + 1e-6))};
  }
}

void Head::find_floors(int thread, const Panels& panels, Share share, Tensor out) {
  std::vector<float>& floors = threads_[size_t(thread)].floors;
  for (int64_t t = 0; t < out.rows; ++t) {
    const Bound bound = bounds_[size_t(t)];
    float best = floors[size_t(t)];
    for (int64_t p = share.first; p < share.last; ++p) {
      const float* logits = out.row<float>(t) + p * kPanelRows;
      const float* errors = errors_of(panels, p);
      const int64_t count = std::min<int64_t>(kPanelRows, panels.rows - p * kPanelRows);
      best = std::max(best, best_floor(logits, errors, count, bound.row_norm, bound.rest));
    }
    floors[size_t(t)] = best;
  }
}

void Head::find_candidates(int thread, const Panels& panels, Share share, Tensor out) {
  Thread& mine = threads_[size_t(thread)];
  mine.candidates.clear();
  mine.counts.assign(size_t(out.rows), 0);
  for (int64_t t = 0; t < out.rows; ++t) {
    const Bound bound = bounds_[size_t(t)];
    float floor = -std::numeric_limits<float>::infinity();
    for (const Thread& thread_memory : threads_) {
      floor = std::max(floor, thread_memory.floors[size_t(t)]);
    }
    int32_t& found = mine.counts[size_t(t)];
    for (int64_t p = share.first; p < share.last && found <= kHeadCandidates; ++p) {
      const float* logits = out.row<float>(t) + p * kPanelRows;
      const float* errors = errors_of(panels, p);
      const int64_t count = std::min<int64_t>(kPanelRows, panels.rows - p * kPanelRows);
      // A line a panel, which the machine does not foresee.
      if (t == 0) __builtin_prefetch(errors_of(panels, std::min(p + kPanelsAhead, share.last - 1)));
      if (!any_reaches(logits, errors, count, bound.row_norm, bound.rest, floor)) continue;
      for (int64_t i = 0; i < count; ++i) {
        if (logits[i] + (errors[i] * bound.row_norm + bound.rest) < floor) continue;
        mine.candidates.push_back({int32_t(t), int32_t(p * kPanelRows + i)});
        ++found;
      }
    }
  }
}

void Head::compute_again(int thread, Tensor x, const Weight& w, Share share, Tensor out) {
  Thread& mine = threads_[size_t(thread)];
  mine.weights.resize(size_t(w.cols));
  const auto compute = [&](int64_t t, int64_t n) {
    look_up_row(w, n, mine.weights.data());
    out.row<float>(t)[n] = dot_rows(x.row<float>(t), mine.weights.data(), w.cols);
  };
  for (const Candidate& c : mine.candidates) {
    if (counts_[size_t(c.row)] <= kHeadCandidates) compute(c.row, c.output);
  }
  for (int64_t t = 0; t < x.rows; ++t) {
    if (counts_[size_t(t)] <= kHeadCandidates) continue;
    const int64_t last = std::min(share.last * kPanelRows, w.rows);
    for (int64_t n = share.first * kPanelRows; n < last; ++n) compute(t, n);
  }
}

void Head::run(Tensor x, const Weight& w, Tensor out) {
  const PackedWeight& head = packed(w);
  const Panels panels = head.panels.first;
  const Kernel& kernel = workers_.kernel(PanelFormat::kInt8, x.rows);
  const InputRows inputs = workers_.make_inputs(0, kernel, x);
  bound_inputs(x, head, kernel.input, inputs);
  Pieces& pieces = workers_.deal(panels.count(), panels.lines * kLineBytes);
  workers_.run(x.rows * w.rows * w.cols, [&](int thread) {
    threads_[size_t(thread)].floors.assign(size_t(out.rows),
                                           -std::numeric_limits<float>::infinity());
    for (Share piece = pieces.take(thread); !piece.empty(); piece = pieces.take(thread)) {
      workers_.multiply(thread, kernel,
                        {.w = panels,
                         .first_panel = piece.first,
                         .last_panel = piece.last,
                         .x = inputs,
                         .rows = x.rows,
                         .out = out.row<float>(0),
                         .out_stride = out.stride});
      find_floors(thread, panels, piece, out);
    }
  });
  workers_.run(x.rows * w.rows, [&](int thread) {
    find_candidates(thread, panels, workers_.share(thread, panels.count()), out);
  });
  counts_.assign(size_t(x.rows), 0);
  int64_t again = 0;
  for (const Thread& thread : threads_) {
    for (size_t t = 0; t < counts_.size(); ++t) counts_[t] += thread.counts[t];
    again += int64_t(thread.candidates.size());
  }
  workers_.run(again * w.cols, [&](int thread) {
    compute_again(thread, x, w, workers_.share(thread, panels.count()), out);
  });
}

}  // namespace nibble
