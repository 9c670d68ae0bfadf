#include "model/glm_cost.h"

#include <algorithm>

namespace nibble {
namespace {

double flops_of(const Weight& w) {
  return 2.0 * double(w.total_rows()) * double(w.cols);
}

// A BF16 head is read as codes of a byte (Use::kHead), with a scale a row.
double head_bytes(const Weight& head) {
  const bool has_codes =
      head.use == Use::kHead && std::ranges::all_of(head.parts, [](const WeightPart& part) {
        return part.format == Format::kBF16;
      });
  return has_codes ? double(head.rows * (head.cols + int64_t(sizeof(float))))
                   : double(storage_bytes(head));
}

}  // namespace

GlmCost cost_of(const GlmConfig& config, const GlmWeights& weights) {
  GlmCost cost;
  const auto add = [&](const Weight& w) {
    if (w.empty()) return;
    cost.shared_bytes += double(storage_bytes(w));
    if (w.use != Use::kVector) cost.flops_per_token += flops_of(w);
  };
  for (const GlmLayer& l : weights.layers) {
    for (const Weight* w : {&l.attention_norm, &l.qkv_a, &l.q_norm, &l.q_b, &l.kv_norm, &l.kv_b,
                            &l.o, &l.feed_forward_norm, &l.feed_forward.gate_up,
                            &l.feed_forward.down, &l.router, &l.router_bias}) {
      add(*w);
    }
    if (l.experts_down.empty()) continue;
    for (const Weight* w : {&l.experts_gate_up, &l.experts_down}) {
      const double count = double(w->count), shared = count - config.num_experts;
      const double bytes = double(storage_bytes(*w)) / count;
      cost.expert_bytes += bytes;
      cost.shared_bytes += shared * bytes;
      cost.flops_per_token += flops_of(*w) / count * (config.top_k + shared);
    }
  }
  cost.shared_bytes += head_bytes(weights.lm_head);
  cost.bytes_per_token = cost.shared_bytes + config.top_k * cost.expert_bytes;
  cost.head_flops = flops_of(weights.lm_head);
  const MlaShape mla = config.mla();
  const double per_dim = 2.0 * config.num_layers * mla.heads;
  cost.absorbed_flops_per_pair = per_dim * (mla.record_dim() + mla.latent_dim);
  cost.expanded_flops_per_pair = per_dim * (mla.query_dim() + mla.value_dim);
  return cost;
}

}  // namespace nibble
