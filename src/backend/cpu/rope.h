// Rotary positions: the cosines and sines of every position seen so far, computed in double.
#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

class RopeTable {
 public:
  // Makes positions 0 .. `positions` - 1 of this rotation available.
  void cover(int dim, float theta, int64_t positions);

  // out = x rotated: pairs (x0, x1) by the angle position * theta^(-2i / dim). May be x itself.
  void rotate(const float* x, int64_t position, float* out) const;

 private:
  int dim_ = 0;
  float theta_ = 0;
  int64_t positions_ = 0;
  std::vector<double> frequencies_;
  std::vector<float> table_;  // [positions][dim]: cosine, sine of each pair
};

}  // namespace nibble
