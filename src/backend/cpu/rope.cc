#include "backend/cpu/rope.h"

#include <algorithm>
#include <cmath>

namespace nibble {

void RopeTable::cover(int dim, float theta, int64_t positions) {
  if (dim != dim_ || theta != theta_) {
    dim_ = dim;
    theta_ = theta;
    positions_ = 0;
    frequencies_.clear();
    for (int i = 0; i < dim; i += 2) {
      frequencies_.push_back(std::pow(double(theta), -double(i) / dim));
    }
  }
  if (positions <= positions_) return;
  const int64_t target = std::max(positions, positions_ + positions_ / 2 + 256);
  table_.resize(size_t(target * dim));
  for (int64_t p = positions_; p < target; ++p) {
    float* row = table_.data() + p * dim;
    for (size_t i = 0; i < frequencies_.size(); ++i) {
      row[2 * i] = float(std::cos(double(p) * frequencies_[i]));
      row[2 * i + 1] = float(std::sin(double(p) * frequencies_[i]));
    }
  }
  positions_ = target;
}

void RopeTable::rotate(const float* x, int64_t position, float* out) const {
  const float* row = table_.data() + position * dim_;
  for (int i = 0; i < dim_; i += 2) {
    const float x0 = x[i], x1 = x[i + 1];
    out[i] = x0 * row[i] - x1 * row[i + 1];
    out[i + 1] = x0 * row[i + 1] + x1 * row[i];
  }
}

}  // namespace nibble
