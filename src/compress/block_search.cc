// Candidates of a block's scale are the lanes of a vector: each lane rounds the block's 16 columns
// in turn with its own scale and feeds its own errors forward.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "compress/block_search.cc"
#include "compress/block_search.h"

#include <algorithm>
#include <cmath>

#include "base/numbers.h"
#include "hwy/foreach_target.h"  // before simd-inl.h
#include "quant/nvfp4.h"
// clang-format off
#include "backend/cpu/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

constexpr int kSize = nvfp4::kBlock;
constexpr int kCandidates = 16;

// The nearest E2M1 value, ties to the even code: adding 2^22 rounds to halves, 2^23 to ones.
HWY_INLINE FloatVec round_to_e2m1(FloatVec x) {
  const FloatVec a = hn::Min(hn::Abs(x), set(6.0f));
  const FloatVec fine =
      hn::IfThenElse(hn::Lt(a, set(2.0f)), set(0x1p22f),
                     hn::IfThenElse(hn::Lt(a, set(4.0f)), set(0x1p23f), set(0x1p24f)));
  return hn::CopySign(hn::Sub(hn::Add(a, fine), fine), x);
}

// Rounds the block with kLanes candidates; rounded [16][kCandidates], loss [kCandidates].
HWY_INLINE void try_scales(const float* block, const float* inside, const float* weight,
                           const float* scales, float* rounded, float* loss) {
  const FloatVec scale = load(scales);
  const FloatVec inverse = hn::Div(set(1.0f), scale);
  FloatVec w[kSize];
  for (int c = 0; c < kSize; ++c) w[c] = set(block[c]);
  FloatVec sum = zero();
  for (int c = 0; c < kSize; ++c) {
    const FloatVec r = round_to_e2m1(hn::Mul(w[c], inverse));
    const FloatVec q = hn::Mul(r, scale);
    const FloatVec miss = hn::Sub(w[c], q);
    sum = hn::MulAdd(hn::Mul(miss, miss), set(weight[c]), sum);
    store(r, rounded + c * kCandidates);
    const FloatVec error = hn::Sub(set(block[c]), q);
    for (int d = c + 1; d < kSize; ++d) {
      w[d] = hn::MulAdd(error, set(inside[c * kSize + d]), w[d]);
    }
  }
  store(sum, loss);
}

// block [16]: what is to be rounded, errors of earlier blocks included.
double round_block(const ScaleSearch& search, const float* block, const float* inside,
                   const float* weight, float* values, uint8_t* codes, uint8_t* scale_code) {
  float amax = 0;
  for (int c = 0; c < kSize; ++c) amax = std::max(amax, std::fabs(block[c]));
  const float ideal = amax / (nvfp4::kE2M1Max * search.tensor_scale);
  const int middle = float_to_e4m3(std::clamp(ideal, 0x1p-9f, nvfp4::kE4M3Max));
  const int count = search.highest - search.lowest + 1;
  uint8_t tried[kCandidates];
  HWY_ALIGN float scales[kCandidates], loss[kCandidates], rounded[kSize * kCandidates];
  for (int i = 0; i < kCandidates; ++i) {
    tried[i] = uint8_t(std::clamp(middle + search.lowest + std::min(i, count - 1), 1, 126));
    scales[i] = e4m3_to_float(tried[i]) * search.tensor_scale;
  }
  for (int i = 0; i < kCandidates; i += kLanes) {
    try_scales(block, inside, weight, scales + i, rounded + i, loss + i);
  }
  const int best = int(std::min_element(loss, loss + count) - loss);
  *scale_code = tried[best];
  for (int c = 0; c < kSize; ++c) {
    const float r = rounded[c * kCandidates + best];
    codes[c] = float_to_e2m1(r);
    values[c] = r * scales[best];
  }
  return loss[best];
}

// block[r] += sum over j < depth of errors[r][j] * before[j].
HWY_NOINLINE void add_earlier_errors(const float* before, int64_t depth, const float* errors,
                                     int64_t stride, float (*block)[kSize]) {
  constexpr int kVectors = kSize / kLanes;
  FloatVec sum[kFeedbackRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kFeedbackRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[r][v] = load(block[r] + v * kLanes);
  }
  for (int64_t j = 0; j < depth; ++j, before += kSize) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const FloatVec factor = load(before + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kFeedbackRows; ++r) {
        sum[r][v] = hn::MulAdd(factor, set(errors[r * stride + j]), sum[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kFeedbackRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(sum[r][v], block[r] + v * kLanes);
  }
}

double round_rows(const Feedback& f, const ScaleSearch& search, int64_t rows, float* targets,
                  uint8_t* codes, uint8_t* scales) {
  const int64_t blocks = f.cols / kSize;
  double loss = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    HWY_ALIGN float block[kFeedbackRows][kSize] = {};
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(targets + r * f.cols + b * kSize, kSize, block[r]);
    }
    add_earlier_errors(f.before + 128 * b * (b - 1), b * kSize, targets, f.cols, block);
    for (int64_t r = 0; r < rows; ++r) {
      float values[kSize];
      loss += round_block(search, block[r], f.inside + b * kSize * kSize, f.weight + b * kSize,
                          values, codes + r * f.cols + b * kSize, scales + r * blocks + b);
      float* target = targets + r * f.cols + b * kSize;
      for (int c = 0; c < kSize; ++c) target[c] -= values[c];
    }
  }
  return loss;
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(round_rows);

double round_rows_with_feedback(const Feedback& feedback, const ScaleSearch& search, int64_t rows,
                                float* targets, uint8_t* codes, uint8_t* scales) {
  return HWY_DYNAMIC_DISPATCH(round_rows)(feedback, search, rows, targets, codes, scales);
}

}  // namespace nibble
#endif
