// linear: out (+)= x w^T, outputs and blocks of rows shared among the threads.
#pragma once

#include "backend/cpu/head.h"
#include "backend/cpu/workers.h"
#include "base/tensor.h"
#include "quant/weight.h"

namespace nibble {

class CpuLinear {
 public:
  explicit CpuLinear(Workers& workers) : workers_(workers), head_(workers) {}

  void run(Tensor x, const Weight& weight, Tensor out, bool accumulate);

 private:
  // The rows as the kernel reads them, made by all threads: for each set of factors, all rows.
  InputRows share_inputs(const Kernel& kernel, Tensor x, const PackedWeight& w);

  Workers& workers_;
  Head head_;
  Scratch<uint8_t> inputs_;
};

}  // namespace nibble
