// What a token costs a model: the bytes of weights that it reads and the operations that it does.
#pragma once

#include "model/glm_config.h"
#include "model/glm_weights.h"

namespace nibble {

struct GlmCost {
  // Weights read for one row: all but the embedding table and the experts that are not chosen.
  double bytes_per_token = 0;
  // 2 for each multiply-add with a weight; lm_head apart, since prompts need it once.
  double flops_per_token = 0;
  double head_flops = 0;
  // 2 for each multiply-add with a cached record, in the absorbed form.
  double flops_per_cached_token = 0;
};

GlmCost cost_of(const GlmConfig& config, const GlmWeights& weights);

}  // namespace nibble
