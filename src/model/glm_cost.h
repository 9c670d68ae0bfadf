// What a token costs a model: the bytes of weights that it reads and the operations that it does.
#pragma once

#include "model/glm_config.h"
#include "model/glm_weights.h"

namespace nibble {

struct GlmCost {
  double shared_bytes = 0;  // weights that every step reads: all but the embedding and experts
  double expert_bytes = 0;  // of one expert in all layers together
  // Weights read for one row: the shared ones and the chosen experts.
  double bytes_per_token = 0;
  // 2 for each multiply-add with a weight; lm_head apart, since prompts need it once.
  double flops_per_token = 0;
  double head_flops = 0;
  // 2 for each multiply-add of a token with a cached one: of keys and values in the latent space,
  // as decoding does, or of expanded ones, as a long prompt can (expansion not counted).
  double absorbed_flops_per_pair = 0;
  double expanded_flops_per_pair = 0;
};

GlmCost cost_of(const GlmConfig& config, const GlmWeights& weights);

}  // namespace nibble
