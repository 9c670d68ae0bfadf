// INT8 panels of the head.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "backend/cpu/packer.h"

namespace nibble {
namespace {

constexpr int kColumnsAtOnce = 8;

// Where column k of a lane lies, after the two lines of scales and errors.
int64_t int8_offset(int64_t k, int lane) {
  const int64_t line = k / 8 * 2 + k % 2, byte = k % 8 / 2;
  return (2 + line) * kLineBytes + lane * 4 + byte;
}

// Rounds a row, stores it, and returns the norm of what is stored.
double store_row(const std::vector<float>& row, uint8_t* panel, int lane) {
  float largest = 0;
  for (const float v : row) largest = std::max(largest, std::fabs(v));
  const float scale = largest / 127, inverse = largest > 0 ? 127 / largest : 0;
  double error = 0, norm = 0;
  for (size_t k = 0; k < row.size(); ++k) {
    const int code = int(std::nearbyint(row[k] * inverse));
    panel[int8_offset(int64_t(k), lane)] = uint8_t(int8_t(code));
    const double value = double(code) * double(scale), off = double(row[k]) - value;
    error += off * off;
    norm += value * value;
  }
  const float bound = float(std::sqrt(error) * (1 + 1e-6));
  std::memcpy(panel + lane * 4, &scale, 4);
  std::memcpy(panel + kLineBytes + lane * 4, &bound, 4);
  return std::sqrt(norm);
}

}  // namespace

Panels int8_panels(const Weight& w) {
  const int64_t cols = (w.cols + kColumnsAtOnce - 1) / kColumnsAtOnce * kColumnsAtOnce;
  return {.format = PanelFormat::kInt8,
          .rows = w.rows,
          .cols = w.cols,
          .lines = 2 + cols / 4,
          .group_panels = 1};
}

PanelStack pack_int8(const Weight& w, Packer& packer) {
  const PanelStack stack = packer.new_stack(int8_panels(w), 1);
  std::vector<double> norms(size_t(stack.first.count()), 0.0);
  packer.pool().parallel_for(stack.first.count(), [&](int64_t p) {
    std::vector<float> row(static_cast<size_t>(w.cols));
    for (int lane = 0; lane < kPanelRows && p * kPanelRows + lane < w.rows; ++lane) {
      look_up_row(w, p * kPanelRows + lane, row.data());
      uint8_t* panel = const_cast<uint8_t*>(stack.first.panel(p));
      norms[size_t(p)] = std::max(norms[size_t(p)], store_row(row, panel, lane));
    }
  });
  packer.owner().largest_norm = float(*std::max_element(norms.begin(), norms.end()) * (1 + 1e-6));
  return stack;
}

}  // namespace nibble
