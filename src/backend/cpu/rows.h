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
// The same of panels that alternate: 16 of the gate, 16 that they gate, ...
void silu_mul_panels_row(const float* panels, int64_t n, float* out);

// out += factor * x
void add_scaled_row(const float* x, float factor, int64_t n, float* out);

// The sum of a[i] * b[i].
float dot_rows(const float* a, const float* b, int64_t n);

// max of x[i] - (errors[i] * factor + rest)
float best_floor(const float* x, const float* errors, int64_t n, float factor, float rest);
// Whether any x[i] + (errors[i] * factor + rest) is not below `floor`.
bool any_reaches(const float* x, const float* errors, int64_t n, float factor, float rest,
                 float floor);

// x = sigmoid(x)
void sigmoid_row(float* x, int64_t n);

}  // namespace nibble
