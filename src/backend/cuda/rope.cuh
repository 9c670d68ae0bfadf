// rotate: interleaved pairs (x0, x1) by the angle position * theta^(-2i / dim). The angle is taken
// in turns and in FP64, of which sincospi needs only the fraction: exact to FP32 at any position.
#pragma once

#include <cmath>
#include <numbers>

#include "base/check.h"

namespace nibble::cuda {

struct Rope {
  static constexpr int kMaxPairs = 64;
  int dim = 0;
  double turns[kMaxPairs] = {};  // a position's rotation of pair i, in turns
};

inline Rope rope_of(int dim, float theta) {
  CHECK(dim % 2 == 0 && dim / 2 <= Rope::kMaxPairs, "rope of %d", dim);
  Rope rope{.dim = dim};
  for (int i = 0; i < dim / 2; ++i) {
    rope.turns[i] = std::pow(double(theta), -2.0 * i / dim) / (2 * std::numbers::pi);
  }
  return rope;
}

__device__ __forceinline__ float2 rotate(const Rope& rope, int position, int pair, float x0,
                                         float x1) {
  const double turns = position * rope.turns[pair];
  float sine, cosine;
  sincospif(float(2 * (turns - floor(turns))), &sine, &cosine);
  return make_float2(x0 * cosine - x1 * sine, x0 * sine + x1 * cosine);
}

}  // namespace nibble::cuda
