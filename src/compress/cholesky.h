// Cholesky factor of a symmetric positive definite matrix, and what is solved with it.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"

namespace nibble {

// Replaces the upper triangle of g [n, n] by U with g = U^T U; what is below it is undefined
// before and after. False: a pivot was not positive.
bool factor_cholesky(double* g, int64_t n, ThreadPool& pool);

// Replaces x [rows, n] by x (U^T U)^-1; u is upper triangular.
void solve_cholesky(const float* u, int64_t n, float* x, int64_t rows, ThreadPool& pool);

}  // namespace nibble
