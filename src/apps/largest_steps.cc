#include "apps/largest_steps.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "model/glm_flash.h"

namespace nibble {
namespace {

constexpr int kMostSplitContext = 16384;  // more does not split attention further

int64_t pages_for(int64_t tokens, int page_size) {
  return (tokens + page_size - 1) / page_size;
}

// Equal for layers that make the same calls with weights of the same formats.
std::string kind_of(const GlmLayer& layer) {
  std::string kind;
  for (const Weight* w :
       {&layer.qkv_a, &layer.q_b, &layer.kv_b, &layer.o, &layer.router, &layer.experts_gate_up,
        &layer.experts_down, &layer.feed_forward.gate_up, &layer.feed_forward.down}) {
    std::set<std::pair<Format, bool>> formats;
    for (const WeightPart& part : w->parts) {
      formats.emplace(part.format, part.input_scales != nullptr);
    }
    kind += std::to_string(w->count) + ':';
    for (const auto& [format, scaled] : formats) {
      kind += std::to_string(2 * int(format) + int(scaled)) + ',';
    }
  }
  return kind;
}

}  // namespace

GlmWeights layers_of_each_kind(const GlmWeights& weights, GlmConfig& config) {
  GlmWeights some;
  some.embedding = weights.embedding;
  some.final_norm = weights.final_norm;
  some.lm_head = weights.lm_head;
  std::set<std::string> kinds;
  int dense = 0;
  for (int l = 0; l < config.num_layers; ++l) {
    const GlmLayer& layer = weights.layers[size_t(l)];
    if (!kinds.insert((config.is_dense(l) ? "dense " : "") + kind_of(layer)).second) continue;
    some.layers.push_back(layer);
    dense += config.is_dense(l);
  }
  config.num_layers = int(some.layers.size());
  config.dense_layers = dense;
  return some;
}

void run_largest_steps(const GlmConfig& whole, const GlmWeights& all, Backend& backend,
                       const EngineOptions& o) {
  GlmConfig config = whole;
  const GlmWeights weights = layers_of_each_kind(all, config);
  GlmFlash model(config, weights, backend, o.max_num_batched_tokens, Engine::logit_rows(o));
  KvLayer layer{.format = o.kv_format,
                .page_size = o.page_size,
                .width = config.mla().record_dim(),
                .latent = config.mla().latent_dim};
  const int64_t pages = pages_for(o.max_num_batched_tokens, o.page_size);
  layer.data = backend.allocate(size_t(pages * kv_page_bytes(layer)));
  const std::vector<KvLayer> caches(size_t(config.num_layers), layer);

  // A prompt in each of the two orders that attention has, the expanded one behind a context of
  // more positions than are expanded at once.
  for (const bool expanded : {false, true}) {
    const int rows = std::min(o.max_num_batched_tokens, config.max_positions);
    const int context = expanded ? std::min(config.max_positions - rows, kMostSplitContext) : 0;
    Batch prompt{.tokens = std::vector<int32_t>(size_t(rows)),
                 .segments = {{.num_rows = rows, .context = context, .expanded = expanded}},
                 .logit_rows = {0}};
    for (int64_t p = 0; p < pages_for(context + rows, o.page_size); ++p) {
      prompt.pages.push_back(int32_t(p % pages));
    }
    model.forward(prompt, caches);
  }

  // Every sequence so long that kernels split it as often as they ever do, all in the same pages.
  const int context = std::min(config.max_positions, kMostSplitContext) - 1;
  Batch decode{.pages = std::vector<int32_t>(size_t(pages_for(context + 1, o.page_size)), 0)};
  for (int s = 0; s < o.max_num_seqs; ++s) {
    decode.tokens.push_back(0);
    decode.segments.push_back({.first_row = s, .num_rows = 1, .context = context});
    decode.logit_rows.push_back(s);
  }
  const Tensor logits = model.forward(decode, caches);
  float value = 0;
  if (logits.rows > 0) backend.read(logits.data, &value, sizeof(value));  // waits
  backend.free(layer.data);
}

}  // namespace nibble
