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

// Cosine and sine of a pair's angle.
__device__ __forceinline__ float2 turn_of(const Rope& rope, int position, int pair) {
  const double turns = position * rope.turns[pair];
  float2 turn;
  sincospif(float(2 * (turns - floor(turns))), &turn.y, &turn.x);
  return turn;
}

__device__ __forceinline__ float2 rotate(float2 turn, float x0, float x1) {
  return make_float2(x0 * turn.x - x1 * turn.y, x0 * turn.y + x1 * turn.x);
}

}  // namespace nibble::cuda
