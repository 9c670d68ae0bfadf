// Weights that nobody trained: a model's shapes in NVFP4, made in a second, to measure speed and
// memory without a checkpoint.
#pragma once

#include "model/glm_weights.h"

namespace nibble {

// Random so that the model behaves: linears are NVFP4 with codes uniform in 0..15, block scales 1
// and global scale 1 / (2.926 sqrt(K)), which keeps the variance of what goes through (2.926: the
// rms of E2M1's codes); norms 1, embedding N(0, 1), router and lm_head N(0, 1 / K) in BF16, router
// bias 0. Tiny equal weights would make every router tie. Linears whose K is no multiple of 16 are
// BF16.
//
// All parts point into a few buffers, at offsets of their own: about 50 MB hold any model. The same
// config gives the same weights, on every backend and on the disk: all take these bytes.
GlmWeights dummy_weights(const GlmConfig& config);

}  // namespace nibble
