#include "apps/memory_plan.h"

#include <algorithm>

#include "engine/engine.h"

namespace nibble {
namespace {

constexpr int64_t kContextBytes = int64_t(320) << 20;  // with a stack of 256 bytes a thread

int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

// In the order of tensor-core fragments: tiles of 16 rows, units of 128 or 64 columns.
int64_t packed_bytes(const Weight& w) {
  const int64_t rows = w.count * round_up(w.rows, 16);
  const int64_t factors = rows * int64_t(sizeof(float));
  switch (w.parts.front().format) {
    case Format::kNvfp4:
      return rows * round_up(w.cols, 128) * 9 / 16 + factors;
    case Format::kF32:
      return rows * round_up(w.cols, 64) * 4 + factors;
    default:
      return rows * round_up(w.cols, 64) * 2 + factors;
  }
}

}  // namespace

int64_t card_bytes(const Weight& w) {
  switch (w.use) {
    case Use::kLinear:
    case Use::kHead:
    case Use::kExperts:
      return packed_bytes(w);
    case Use::kTable:
    case Use::kLatentUp:
      return storage_bytes(w);
    case Use::kRouter:
    case Use::kVector:
      return w.total_rows() * w.cols * int64_t(sizeof(float));
  }
  return 0;
}

MemoryPlan plan_card(const GlmConfig& config, const GlmWeights& weights,
                     const ModelOptions& options, int64_t budget_bytes) {
  MemoryPlan plan{.budget_bytes = budget_bytes, .context_bytes = kContextBytes};
  GlmWeights visited = weights;
  visited.for_each([&](Weight& w) {
    const bool on_host = w.use == Use::kTable && budget_bytes < kPlentyOfCardBytes;
    (on_host ? plan.host_bytes : plan.weights_bytes) += card_bytes(w);
  });
  const EngineOptions engine{.max_num_seqs = options.max_num_seqs,
                             .max_num_batched_tokens = options.max_num_batched_tokens};
  plan.activation_bytes = GlmFlash::scratch_bytes(
      config, DType::kBF16, options.max_num_batched_tokens, Engine::logit_rows(engine));
  return plan;
}

}  // namespace nibble
