// NVFP4 rounding that loses the least output over the calibration inputs (GPTQ).
//
// With H = E[w x x'] over inputs x of the model quantized so far, w their weights, and
// C = E[w x_original x']:
//   1. targets  T = W + a W (C - H) (H + l)^-1: a of the way from W x to W x_original
//   2. blocks of 16 columns are rounded in order of falling diagonal of H; with H + l = R R', R
//      upper in that order, column k is rounded from T_k + sum over j < k of (T - Q)_j R_jk / R_kk,
//      which leaves R_kk^2 times its squared error in the output
//   3. a block's E4M3 scale is the candidate that leaves the least in its 16 columns
//   4. rows that an output Hessian G couples take over errors in the same way, one after another in
//      order of falling diagonal of G; the targets of the others are their own
// l is a share of the mean diagonal, of G's too. FP8 has targets too, which are rounded to nearest.
#pragma once

#include <string>

#include "compress/encoded.h"
#include "compress/moments.h"
#include "compress/output_hessian.h"

namespace nibble {

struct FeedbackOptions {
  double target_share = 0.4;  // a; needs Moments::cross
  double damping = 0.1;       // l
  float largest_scale = 256;  // tensor scale = largest target / (6 * this)
  int lowest_candidate = -7;  // E4M3 codes around that of the block's largest magnitude
  int highest_candidate = 6;
};

struct FeedbackResult {
  Encoded encoded{};
  double output_error = 0;  // sqrt(E |(Q - W) x|^2 / E |W x|^2)
};

// weights [rows, moments.cols] are overwritten. `coupled`: as output_hessians gives them. Throws
// Error that names `name`: the moments are not finite.
FeedbackResult encode_with_feedback(const std::string& name, std::vector<float>& weights,
                                    int64_t rows, Precision precision, const Moments& moments,
                                    const std::vector<OutputHessian>& coupled,
                                    const FeedbackOptions& options, ThreadPool& pool);

}  // namespace nibble
