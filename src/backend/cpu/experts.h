// experts: the mixture of experts over a whole batch, for one row and for thousands by one road.
#pragma once

#include "backend/backend.h"
#include "backend/cpu/workers.h"

namespace nibble {

class Experts {
 public:
  explicit Experts(Workers& workers) : workers_(workers), wide_(size_t(workers.size())) {}

  void run(Tensor x, const Routing& routing, const Weight& gate_up, const Weight& down, Tensor out);

 private:
  // The experts that have pairs, as a line: each has its cost `units` times, once a unit.
  int64_t cost_of(int64_t expert) const;
  Pieces& deal(int64_t units, int64_t unit_bytes);
  // body(expert, first unit, last unit) for the units of a piece of the line.
  template <typename Body>
  void for_each_run(Share costs, int64_t units, Body&& body) const;

  void sort_by_expert(const Routing& routing, int64_t num_experts);
  void compute_inner(int thread, Pieces& pieces, const Weight& gate_up, int64_t width);
  void compute_outer(int thread, Pieces& pieces, const Weight& down);
  void combine(const Routing& routing, int64_t row, Tensor out) const;

  // Pairs of one expert, and the thread that computes them. It makes its inputs when it meets a set
  // of factors, and keeps those of two sets: gate and up may differ.
  struct Rows {
    int thread = 0;
    const Kernel& kernel;
    int64_t first_pair = 0, count = 0;
    const float* const* x = nullptr;  // [pairs]
    int sets[2] = {-2, -2};
    InputRows inputs[2] = {};
    int next = 0;
  };
  InputRows inputs_of(Rows& rows, const PanelRun& run, int64_t cols);
  // Panels [first, last) of an expert for the rows.
  void multiply(Rows& rows, const PackedWeight& w, int64_t expert, int64_t first, int64_t last,
                float* out, int64_t out_stride, int64_t first_output);

  Workers& workers_;
  // A pair is a row and one of its slots; pairs are sorted by expert, rows rising.
  std::vector<int64_t> first_pair_;  // [E + 1]
  std::vector<int64_t> place_;       // [T * top_k] -> sorted pair
  Scratch<const float*> x_rows_;     // [pairs]
  Scratch<const float*> inner_rows_;
  Scratch<float> inner_, outer_;      // [pairs, n], [pairs, D]
  std::vector<Scratch<float>> wide_;  // a thread's gate and up of some columns
};

}  // namespace nibble
