// A budget of bytes spent on FP8: the linears that lose most a byte in NVFP4 keep twice the bits.
//
// A candidate is a site of a layer, all its experts together, because engines run those as one.
// Its loss is what it alone, rounded to nearest, does to its layer's output:
// E |y_rounded - y|^2 / E |y|^2 over calibration tokens. q_a and kv_a come before all others, in
// order of loss a byte; then the others, in that order, as far as they fit.
#pragma once

#include <vector>

#include "compress/layer_runner.h"
#include "compress/recipe.h"

namespace nibble {

struct SiteLoss {
  int layer = 0;
  Site site = Site::kQkvA;
  double loss = 0;
  int64_t extra_bytes = 0;  // in FP8 rather than NVFP4
};

// Of all sites that the recipe stores in NVFP4. Runs the tokens of `runner` through the model.
std::vector<SiteLoss> measure_losses(const Recipe& recipe, LayerRunner& runner, ThreadPool& pool,
                                     const std::function<void(int layer)>& on_layer);

// Turns sites to FP8 until `bytes` are spent; returns the bytes that were.
int64_t spend_budget(std::vector<SiteLoss> losses, int64_t bytes, Recipe& recipe);

}  // namespace nibble
