// GlmWeights: the tree of a model's weights, and their names in the checkpoint.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "checkpoint/checkpoint.h"
#include "model/glm_config.h"

namespace nibble {

struct GlmFeedForward {  // a dense layer's, or the shared expert, while it is not among the experts
  Weight gate_up;        // [2n, D]: gate over up
  Weight down;           // [D, n]
};

struct GlmLayer {
  Weight attention_norm;        // [1, D]
  Weight qkv_a;                 // [q_rank + kv_rank + rope, D]: q_a over kv_a
  Weight q_norm;                // [1, q_rank]
  Weight q_b;                   // [heads * query_dim, q_rank]
  Weight kv_norm;               // [1, kv_rank]
  Weight kv_b;                  // heads x [nope + value, kv_rank]
  Weight o;                     // [D, heads * value]
  Weight feed_forward_norm;     // [1, D]
  GlmFeedForward feed_forward;  // dense, or the shared expert (see upload)
  Weight router;                // [E, D]; from here on only in layers with experts
  Weight router_bias;           // [1, E]
  Weight experts_gate_up;       // E x [2n, D]
  Weight experts_down;          // E x [D, n]
};

struct GlmWeights {
  Weight embedding;   // [vocab, D]
  Weight final_norm;  // [1, D]
  Weight lm_head;     // [vocab, D]
  std::vector<GlmLayer> layers;

  // Views of the checkpoint's tensors, in any layout of WeightReader. Accepts per-expert or packed
  // expert names; a missing announced MTP layer is fine. Throws Error that names a tensor that is
  // missing or has another shape, dtype or format than config.json says. Tensors that nothing asked
  // for are logged once.
  static GlmWeights load(const Checkpoint& checkpoint, const GlmConfig& config);

  // Visits every weight that is there, in checkpoint order.
  void for_each(const std::function<void(Weight&)>& visit);

  // Replaces every weight by the backend's upload of it. A shared expert of the size and format of
  // the routed ones joins them as expert E, which every row takes: E + 1 experts. `progress` (may
  // be empty) is called with the share done, 0 .. 1.
  void upload(Backend& backend, const std::function<void(double)>& progress = {});

  int64_t size_bytes();  // as stored
};

}  // namespace nibble
