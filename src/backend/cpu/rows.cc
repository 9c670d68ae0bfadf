// Row kernels: norm, SwiGLU, weighted sums. Bound by the latency of a few loads and stores at the
// sizes of one token, by memory at those of a prefill.
//
// A row's tail goes through a padded buffer, so that every element sees the vector arithmetic.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/rows.cc"
#include "backend/cpu/rows.h"

#include <cmath>
#include <limits>

#include "backend/cpu/pack.h"
#include "hwy/foreach_target.h"  // before simd-inl.h
// clang-format off
#include "backend/cpu/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

// The first `count` lanes of x, then zeros.
HWY_INLINE FloatVec load_some(const float* x, int64_t count) {
  HWY_ALIGN float whole[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) whole[i] = x[i];
  return load(whole);
}

HWY_INLINE void store_some(FloatVec v, int64_t count, float* x) {
  HWY_ALIGN float whole[kLanes];
  store(v, whole);
  for (int64_t i = 0; i < count; ++i) x[i] = whole[i];
}

// Sum of squares by four accumulators of lanes: short chains, so that FP32 loses little.
float sum_of_squares(const float* x, int64_t n) {
  FloatVec sum[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const FloatVec v = load(x + i + j * kLanes);
      sum[j] = hn::MulAdd(v, v, sum[j]);
    }
  }
  for (; i < n; i += kLanes) {
    const FloatVec v = i + kLanes <= n ? load(x + i) : load_some(x + i, n - i);
    sum[0] = hn::MulAdd(v, v, sum[0]);
  }
  return sum_of_lanes(hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3])));
}

void rms_norm(const float* x, const float* gain, int64_t n, float eps, float* out) {
  const float mean = sum_of_squares(x, n) / float(n);
  const FloatVec scale = set(float(1 / std::sqrt(double(mean) + double(eps))));
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(hn::Mul(hn::Mul(load(x + i), scale), load(gain + i)), out + i);
  }
  if (i < n) {
    const FloatVec v = hn::Mul(load_some(x + i, n - i), scale);
    store_some(hn::Mul(v, load_some(gain + i, n - i)), n - i, out + i);
  }
}

void add_rms_norm(float* x, const float* delta, const float* gain, int64_t n, float eps,
                  float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(hn::Add(load(x + i), load(delta + i)), x + i);
  for (; i < n; ++i) x[i] += delta[i];
  rms_norm(x, gain, n, eps, out);
}

void silu_mul(const float* gate, const float* up, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(hn::Mul(silu(load(gate + i)), load(up + i)), out + i);
  }
  if (i < n) {
    const FloatVec v = silu(load_some(gate + i, n - i));
    store_some(hn::Mul(v, load_some(up + i, n - i)), n - i, out + i);
  }
}

void silu_mul_panels(const float* panels, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const float* gate = panels + i / kPanelRows * 2 * kPanelRows + i % kPanelRows;
    const FloatVec v = hn::Mul(silu(load(gate)), load(gate + kPanelRows));
    if (i + kLanes <= n) {
      store(v, out + i);
    } else {
      store_some(v, n - i, out + i);
    }
  }
}

void add_scaled(const float* x, float factor, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(hn::MulAdd(load(x + i), set(factor), load(out + i)), out + i);
  }
  if (i < n) {
    const FloatVec v = load_some(x + i, n - i);
    store_some(hn::MulAdd(v, set(factor), load_some(out + i, n - i)), n - i, out + i);
  }
}

float dot(const float* a, const float* b, int64_t n) {
  FloatVec sum[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sum[j] = hn::MulAdd(load(a + i + j * kLanes), load(b + i + j * kLanes), sum[j]);
    }
  }
  for (; i < n; i += kLanes) {
    const int64_t rest = n - i;
    const FloatVec x = rest >= kLanes ? load(a + i) : load_some(a + i, rest);
    const FloatVec y = rest >= kLanes ? load(b + i) : load_some(b + i, rest);
    sum[0] = hn::MulAdd(x, y, sum[0]);
  }
  return sum_of_lanes(hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3])));
}

float floor_of(const float* x, const float* errors, int64_t n, float factor, float rest) {
  FloatVec most = set(-std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const FloatVec bound = hn::MulAdd(load(errors + i), set(factor), set(rest));
    most = hn::Max(most, hn::Sub(load(x + i), bound));
  }
  float best = max_of_lanes(most);
  for (; i < n; ++i) best = std::fmax(best, x[i] - (errors[i] * factor + rest));
  return best;
}

bool reaches(const float* x, const float* errors, int64_t n, float factor, float rest,
             float floor) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const FloatVec bound = hn::MulAdd(load(errors + i), set(factor), set(rest));
    const auto below = hn::Lt(hn::Add(load(x + i), bound), set(floor));
    if (!hn::AllTrue(Floats(), below)) return true;
  }
  for (; i < n; ++i) {
    if (!(x[i] + (errors[i] * factor + rest) < floor)) return true;
  }
  return false;
}

void sigmoids(float* x, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(sigmoid(load(x + i)), x + i);
  if (i < n) store_some(sigmoid(load_some(x + i, n - i)), n - i, x + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(rms_norm);
HWY_EXPORT(add_rms_norm);
HWY_EXPORT(silu_mul);
HWY_EXPORT(silu_mul_panels);
HWY_EXPORT(add_scaled);
HWY_EXPORT(dot);
HWY_EXPORT(floor_of);
HWY_EXPORT(reaches);
HWY_EXPORT(sigmoids);

void add_rms_norm_row(float* x, const float* delta, const float* gain, int64_t n, float eps,
                      float* out) {
  if (delta == nullptr) return HWY_DYNAMIC_DISPATCH(rms_norm)(x, gain, n, eps, out);
  HWY_DYNAMIC_DISPATCH(add_rms_norm)(x, delta, gain, n, eps, out);
}

void rms_norm_row(const float* x, const float* gain, int64_t n, float eps, float* out) {
  HWY_DYNAMIC_DISPATCH(rms_norm)(x, gain, n, eps, out);
}

void silu_mul_row(const float* gate, const float* up, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(silu_mul)(gate, up, n, out);
}

void silu_mul_panels_row(const float* panels, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(silu_mul_panels)(panels, n, out);
}

void add_scaled_row(const float* x, float factor, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(add_scaled)(x, factor, n, out);
}

float dot_rows(const float* a, const float* b, int64_t n) {
  return HWY_DYNAMIC_DISPATCH(dot)(a, b, n);
}

float best_floor(const float* x, const float* errors, int64_t n, float factor, float rest) {
  return HWY_DYNAMIC_DISPATCH(floor_of)(x, errors, n, factor, rest);
}

bool any_reaches(const float* x, const float* errors, int64_t n, float factor, float rest,
                 float floor) {
  return HWY_DYNAMIC_DISPATCH(reaches)(x, errors, n, factor, rest, floor);
}

void sigmoid_row(float* x, int64_t n) {
  HWY_DYNAMIC_DISPATCH(sigmoids)(x, n);
}

}  // namespace nibble
#endif
