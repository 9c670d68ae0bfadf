// route: which experts a row takes, and their weights. Always in FP32.
#pragma once

#include "backend/backend.h"
#include "backend/cpu/workers.h"

namespace nibble {

class CpuRouter {
 public:
  explicit CpuRouter(Workers& workers) : workers_(workers) {}

  void run(Tensor x, const Weight& router, const Weight& bias, const RouterShape& shape,
           Routing out);

 private:
  void choose(float* scores, const float* bias, const RouterShape& shape, int32_t* experts,
              float* weights) const;

  Workers& workers_;
  Scratch<float> scores_;  // [T, E]
};

}  // namespace nibble
