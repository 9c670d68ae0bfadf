// linear: out (+)= x w^T, outputs and blocks of rows shared among the threads.
#pragma once

#include "backend/cpu/workers.h"
#include "base/tensor.h"
#include "quant/weight.h"

namespace nibble {

class Linear {
 public:
  explicit Linear(Workers& workers) : workers_(workers) {}

  void run(Tensor x, const Weight& w, Tensor out, bool accumulate);

 private:
  Workers& workers_;
  Scratch<const float*> x_rows_;
  Scratch<float*> out_rows_;
};

}  // namespace nibble
