// What a card needs for steps, allocated before its memory is shared out.
#pragma once

#include "backend/backend.h"
#include "engine/engine.h"
#include "model/glm_weights.h"

namespace nibble {

// The model with one layer of each kind, by the formats of its weights: what its steps need at once
// is what those of the whole model do. `config` becomes that model's. Shares the weights.
GlmWeights layers_of_each_kind(const GlmWeights& weights, GlmConfig& config);

// Runs the largest steps there can be, over a cache that is forgotten: whatever kernels need grows
// to its size now, so that the cache can have all that is left and nothing grows later.
void run_largest_steps(const GlmConfig& config, const GlmWeights& weights, Backend& backend,
                       const EngineOptions& options);

}  // namespace nibble
