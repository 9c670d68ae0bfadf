// MemoryPlan: what a model takes of a card's memory or of a host's, from its shapes alone, before
// anything is loaded.
#pragma once

#include <cstdint>

#include "apps/options.h"
#include "model/glm_config.h"
#include "model/glm_weights.h"

namespace nibble {

struct MemoryPlan {
  int64_t budget_bytes = 0;      // what the process may take in all
  int64_t context_bytes = 0;     // the driver's, for a process that runs kernels; the program's
  int64_t weights_bytes = 0;     // on the card; of a host, as they are packed
  int64_t host_bytes = 0;        // weights in pinned host memory; rows read as they are stored
  int64_t activation_bytes = 0;  // of a step
  int64_t workspace_bytes = 0;   // of kernels
  bool on_host = false;          // without a card

  // What is left for the cache; negative when not even the weights fit.
  int64_t cache_bytes() const {
    return budget_bytes - context_bytes - weights_bytes - activation_bytes - workspace_bytes -
           (on_host ? host_bytes : 0);
  }
};

// With less than this the embedding stays in host memory, and the BF16 rows of a head with codes.
inline constexpr int64_t kPlentyOfCardBytes = int64_t(24) << 30;

// Tokens of a step where --max-num-batched-tokens does not say: long steps fill a card's tiles
// better. `budget_bytes`: of a card; 0 without one.
int batched_tokens_of(const ModelOptions& options, int64_t budget_bytes);

// `budget_bytes`: of the card, see card_budget_bytes().
MemoryPlan plan_card(const GlmConfig& config, const GlmWeights& weights,
                     const ModelOptions& options, int64_t budget_bytes);

// `budget_bytes`: that may be taken of the host.
MemoryPlan plan_host(const GlmConfig& config, const GlmWeights& weights,
                     const ModelOptions& options, int64_t budget_bytes);

// Bytes of a weight in the layouts of backend/cuda.
int64_t card_bytes(const Weight& weight);

}  // namespace nibble
