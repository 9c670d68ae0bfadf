// OutputHessian: what errors of a linear's outputs cost in the linear that reads them. Rows whose
// errors its weights mix can make good each other's, as columns with correlated inputs can.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "compress/linears.h"

namespace nibble {

// Errors e of the outputs first .. first + size - 1 of a group cost e' values e.
struct OutputHessian {
  int64_t first = 0;
  int64_t size = 0;
  std::vector<float> values{};  // [size, size], symmetric
};

// Of outputs that one linear alone reads and mixes much, from that linear's original weights:
// kv_a's latents (read by kv_b behind the norm's gain) and the values that kv_b makes for a head
// (read by o). Empty for other groups. No two overlap; they are in the order of their rows.
std::vector<OutputHessian> output_hessians(const LinearGroup& group, const GlmLayer& original,
                                           const GlmConfig& config, ThreadPool& pool);

}  // namespace nibble
