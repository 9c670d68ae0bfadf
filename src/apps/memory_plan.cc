#include "apps/memory_plan.h"

#include <algorithm>

#include "apps/runtime.h"
#include "backend/cpu/inputs.h"
#include "backend/cpu/pack.h"
#include "engine/engine.h"

namespace nibble {
namespace {

// The driver's context without a stack for its threads, the kernels' code, the small buffers,
// what allocations are rounded up by and the reserve for recorded steps: what nvidia-smi shows on
// an H100 beyond the rest of the plan, equal for every format of the cache.
constexpr int64_t kContextBytes = int64_t(400) << 20;

// Without a card: the program's code, tokenizer, templates, threads and connections, as
// /proc/PID/status shows them beyond the weights of a small model.
constexpr int64_t kProgramBytes = int64_t(25) << 20;

int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

// In the order of tensor-core fragments: tiles of 16 rows, units of 128 or 64 columns.
int64_t fragment_bytes(const Weight& w) {
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

// Whether the logits come from INT8 codes, and the rows are read only where they matter.
bool has_codes(const Weight& w) {
  return w.use == Use::kHead && std::ranges::all_of(w.parts, [](const WeightPart& part) {
           return part.format == Format::kBF16 && part.input_scales == nullptr;
         });
}

// Codes in units of 128 columns, and a scale a row.
int64_t codes_bytes(const Weight& w) {
  return round_up(w.rows, 16) * (round_up(w.cols, 128) + int64_t(sizeof(float)));
}

// The larger of what grouped experts and expanded attention keep for a step of `rows`.
int64_t workspace_bytes_of(const GlmConfig& c, int64_t rows) {
  constexpr int64_t kGroupedRows = 8192, kSlabStep = 4096, kRowTile = 128;
  constexpr int64_t kBF16 = 2, kF32 = 4;
  const int64_t pairs = std::min(rows, kGroupedRows) * (c.top_k + c.shared_experts);
  const int64_t padded = pairs + (c.num_experts + c.shared_experts) * kRowTile;
  const int64_t experts =  // products, inputs, inner
      pairs * c.hidden * kF32 + padded * (c.hidden + int64_t(c.expert_dim)) * kBF16;
  const MlaShape mla = c.mla();
  const int64_t head_rows = mla.nope_dim + mla.value_dim;
  const int64_t positions = std::max<int64_t>(1, rows / kSlabStep * 2) * kSlabStep;
  const int64_t slab = positions * (mla.record_dim() + mla.heads * head_rows) * kBF16;
  const int64_t up = mla.heads * head_rows * mla.latent_dim * kBF16;
  const int64_t sums = 5 * kF32;  // of a row and head, in the carry
  const int64_t queries =
      rows * mla.heads * (mla.query_dim() * kBF16 + mla.value_dim * kF32 + sums);
  return std::max(experts, slab + up + queries);
}

// What experts, expanded attention and the inputs of the widest product, as integers, take on a
// host for a step of `rows`.
int64_t host_workspace_bytes_of(const GlmConfig& c, int64_t rows) {
  constexpr int64_t kSlab = 2048;  // positions that are expanded at once
  constexpr int64_t kBF16 = 2, kF32 = 4;
  const int64_t pairs = rows * (c.top_k + c.shared_experts);
  const int64_t experts = pairs * (c.hidden + int64_t(c.expert_dim)) * kF32;
  const MlaShape mla = c.mla();
  const int64_t widest =
      std::max<int64_t>({mla.heads * mla.value_dim, c.hidden, c.dense_dim, c.expert_dim});
  const int64_t inputs = rows * input_row_bytes(InputFormat::kSplit16, widest);
  const int64_t records = mla.heads * std::min(rows, kSlab) * (mla.query_dim() + mla.value_dim);
  const int64_t sums = mla.heads * rows * (mla.value_dim + 2);
  constexpr int64_t kBuffers = 10, kHugePage = int64_t(2) << 20;  // each ends inside a page
  return experts + inputs + records * kBF16 + sums * kF32 + kBuffers * kHugePage;
}

}  // namespace

int64_t card_bytes(const Weight& w) {
  switch (w.use) {
    case Use::kLinear:
    case Use::kHead:
    case Use::kExperts:
    case Use::kGatedExperts:
      return fragment_bytes(w);
    case Use::kTable:
    case Use::kLatentUp:
      return storage_bytes(w);
    case Use::kRouter:
    case Use::kVector:
      return w.total_rows() * w.cols * int64_t(sizeof(float));
  }
  return 0;
}

int batched_tokens_of(const ModelOptions& options, int64_t budget_bytes) {
  if (options.max_num_batched_tokens > 0) return options.max_num_batched_tokens;
  return budget_bytes >= kPlentyOfCardBytes ? 8192 : 2048;
}

MemoryPlan plan_card(const GlmConfig& config, const GlmWeights& weights,
                     const ModelOptions& options, int64_t budget_bytes) {
  MemoryPlan plan{.budget_bytes = budget_bytes, .context_bytes = kContextBytes};
  GlmWeights visited = weights;
  visited.for_each([&](Weight& w) {
    if (w.use == Use::kHead && has_exact_logits(options)) w.use = Use::kLinear;
    const bool is_short = budget_bytes < kPlentyOfCardBytes;
    const bool on_host = is_short && (w.use == Use::kTable || has_codes(w));
    (on_host ? plan.host_bytes : plan.weights_bytes) += card_bytes(w);
    if (has_codes(w)) plan.weights_bytes += codes_bytes(w);
  });
  const int rows = batched_tokens_of(options, budget_bytes);
  const EngineOptions engine{.max_num_seqs = options.max_num_seqs, .max_num_batched_tokens = rows};
  plan.activation_bytes =
      GlmFlash::scratch_bytes(config, DType::kBF16, rows, Engine::logit_rows(engine));
  plan.workspace_bytes = workspace_bytes_of(config, rows);
  return plan;
}

MemoryPlan plan_host(const GlmConfig& config, const GlmWeights& weights,
                     const ModelOptions& options, int64_t budget_bytes) {
  MemoryPlan plan{.budget_bytes = budget_bytes, .context_bytes = kProgramBytes, .on_host = true};
  const bool exact = options.dtype == "float32";
  GlmWeights visited = weights;
  visited.for_each([&](Weight& w) {
    const bool rescored = w.use == Use::kHead && !has_exact_logits(options) && has_codes(w);
    if (w.use == Use::kHead && has_exact_logits(options)) w.use = Use::kLinear;
    plan.weights_bytes += packed_bytes(w, exact);
    if (w.use == Use::kTable || rescored) plan.host_bytes += storage_bytes(w);
  });
  const int rows = batched_tokens_of(options, 0);
  const EngineOptions engine{.max_num_seqs = options.max_num_seqs, .max_num_batched_tokens = rows};
  plan.activation_bytes =
      GlmFlash::scratch_bytes(config, DType::kF32, rows, Engine::logit_rows(engine));
  plan.workspace_bytes = host_workspace_bytes_of(config, rows);
  return plan;
}

}  // namespace nibble
