#include "model/glm_cost.h"

namespace nibble {
namespace {

double flops_of(const Weight& w) {
  return 2.0 * double(w.total_rows()) * double(w.cols);
}

}  // namespace

GlmCost cost_of(const GlmConfig& config, const GlmWeights& weights) {
  GlmCost cost;
  const auto add = [&](const Weight& w, double share = 1.0) {
    if (w.empty()) return;
    cost.bytes_per_token += share * double(storage_bytes(w));
    if (w.use != Use::kVector) cost.flops_per_token += share * flops_of(w);
  };
  for (const GlmLayer& l : weights.layers) {
    for (const Weight* w : {&l.attention_norm, &l.qkv_a, &l.q_norm, &l.q_b, &l.kv_norm, &l.kv_b,
                            &l.o, &l.feed_forward_norm, &l.feed_forward.gate_up,
                            &l.feed_forward.down, &l.router, &l.router_bias}) {
      add(*w);
    }
    const double chosen = config.num_experts > 0 ? double(config.top_k) / config.num_experts : 0;
    add(l.experts_gate_up, chosen);
    add(l.experts_down, chosen);
  }
  cost.bytes_per_token += double(storage_bytes(weights.lm_head));
  cost.head_flops = flops_of(weights.lm_head);
  const MlaShape mla = config.mla();
  cost.flops_per_cached_token =
      2.0 * config.num_layers * mla.heads * (mla.record_dim() + mla.latent_dim);
  return cost;
}

}  // namespace nibble
