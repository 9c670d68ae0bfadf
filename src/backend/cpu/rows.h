// Kernels over the elements of rows.
#pragma once

#include <cstdint>

namespace nibble {

// x += delta unless delta is null; out = x / sqrt(mean(x^2) + eps) * gain.
void add_rms_norm_row(float* x, const float* delta, const float* gain, int64_t n, float eps,
                      float* out);

// out = x / sqrt(mean(x^2) + eps) * gain
void rms_norm_row(const float* x, const float* gain, int64_t n, float eps, float* out);

// out = silu(gate) * up
void silu_mul_row(const float* gate, const float* up, int64_t n, float* out);

// out += factor * x
void add_scaled_row(const float* x, float factor, int64_t n, float* out);

// x = sigmoid(x)
void sigmoid_row(float* x, int64_t n);

}  // namespace nibble
