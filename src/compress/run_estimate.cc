#include "compress/run_estimate.h"

#include <algorithm>
#include <set>

#include "backend/kv_cache.h"
#include "compress/best_encoder.h"
#include "compress/layer_runner.h"
#include "compress/matrix_product.h"
#include "model/glm_flash.h"
#include "quant/nvfp4.h"

namespace nibble {
namespace {

constexpr int64_t kFloat = sizeof(float);
// The tokenizer, the threads' small scratch and what the allocator holds back; measured.
constexpr int64_t kProcessBytes = 8'000'000;

// Of a matrix in panels of the CPU backend, which has the rows of kv_b that make keys twice: as
// queries and as keys are multiplied by them.
int64_t packed_bytes(const GlmConfig& c, const LinearGroup& group, Precision precision) {
  const int64_t again = group.site == Site::kKvB ? int64_t(c.heads) * c.nope_dim : 0;
  const int64_t weights = (group.rows + again) * group.cols;
  return precision == Precision::kNvfp4 ? weights * 9 / 16 + group.rows * kFloat : weights * 2;
}

int64_t encoded_bytes(const PlannedGroup& planned) {
  const int64_t weights = planned.group.rows * planned.group.cols;
  switch (planned.precision) {
    case Precision::kKept:
      return 0;
    case Precision::kFp8:
      return weights;
    case Precision::kNvfp4:
      return weights * 9 / 16;
  }
  return 0;
}

RunEstimate estimate_writer(const std::vector<TensorPlan>& target) {
  constexpr int64_t kEntry = 1024;  // of a header and of the table of places
  return {.memory_bytes = int64_t(target.size()) * kEntry,
          .target_bytes = total_bytes(target),
          .written_bytes = total_bytes(target)};
}

class Estimator {
 public:
  Estimator(const GlmConfig& config, const CalibrationTokens& tokens, const Backend& backend,
            bool spills)
      : c_(config),
        tokens_(tokens),
        rows_(tokens.max_rows()),
        spills_(spills),
        rounds_(backend.product_input_dtype(Format::kBF16) != DType::kF32) {
    for (int l = 0; l < c_.num_layers; ++l) {
      for (const LinearGroup& group : linear_groups(c_, l)) {
        if (group.expert < 0) widest_ = std::max(widest_, group.cols);
      }
    }
  }

  // measure_token_weights: layers take less than when they are encoded, the head comes on top.
  void weigh() {
    constexpr int rows = LayerRunner::kHeadRows;
    const int64_t panels = c_.vocab * (c_.hidden + kFloat);  // INT8, a scale a row
    reach("lm_head", panels + GlmFlash::scratch_bytes(c_, DType::kF32, rows, rows) +
                         rows * (int64_t(c_.vocab) + c_.hidden) * kFloat);
    weighs_ = true;
  }

  void best(const std::vector<PlannedGroup>& layer) {
    int64_t held = original_bytes(layer);  // the layer's weights in both versions
    for (const Stage& stage : best_stages()) {
      std::vector<const PlannedGroup*> groups;
      for (const PlannedGroup& planned : layer) {
        if (stage.sites.contains(planned.group.site)) groups.push_back(&planned);
      }
      int64_t moments = 0, work = 0, result = 0;
      const PlannedGroup* hardest = groups.front();
      for (const PlannedGroup* planned : groups) {
        const int64_t square = planned->group.cols * planned->group.cols * kFloat;
        moments += square * (crosses(*planned) ? 2 : 1);
        if (feedback_bytes(*planned) > work) hardest = planned;
        work = std::max(work, feedback_bytes(*planned));
        if (planned->precision == Precision::kKept) continue;
        result += packed_bytes(c_, planned->group, planned->precision) + encoded_bytes(*planned);
      }
      keep(groups);
      const bool keeps = stage.sites.contains(Site::kO);
      reach(hardest->group.name(), held + moments + (keeps ? kept_inputs_bytes() : 0) +
                                       std::max(work, original_inputs_bytes(groups)));
      held += result;
      reach(hardest->group.name(), held);
    }
  }

  void awq(const std::vector<PlannedGroup>& layer) {
    for (const bool attention : {true, false}) {
      std::vector<const PlannedGroup*> groups;
      for (const PlannedGroup& planned : layer) {
        if ((planned.group.site < Site::kGateUp) == attention) groups.push_back(&planned);
      }
      int64_t moments = 0, work = 0;
      const PlannedGroup* hardest = groups.front();
      for (const PlannedGroup* planned : groups) {
        moments += planned->group.cols * planned->group.cols * kFloat;
        if (search_bytes(*planned) > work) hardest = planned;
        work = std::max(work, search_bytes(*planned));
      }
      keep(groups);
      reach(hardest->group.name(), original_bytes(layer) + moments + work);
    }
  }

  void prune(int layer) {
    std::vector<PlannedGroup> groups;
    for (LinearGroup& group : linear_groups(c_, layer)) groups.push_back({.group = group});
    const int64_t matrix = int64_t(c_.expert_dim) * c_.hidden * kFloat;
    reach("layers." + std::to_string(layer), original_bytes(groups) + matrix);
  }

  // Every block of a layer moves `versions` of the two streams on.
  RunEstimate result(int versions, const std::vector<TensorPlan>& target) const {
    const int64_t stream = tokens_.num_tokens() * c_.hidden * kFloat;
    RunEstimate e = estimate_writer(target);
    e.memory_bytes += peak_bytes_ + steady_bytes() + kProcessBytes;
    e.peak = peak_;
    const int64_t weights = weighs_ ? tokens_.num_tokens() * kFloat : 0;
    e.memory_bytes += 2 * weights;
    e.written_bytes += weights;
    if (!spills_) return e;
    e.spill_bytes = 2 * stream;
    e.written_bytes += stream * (2 + 2 * versions * int64_t(c_.num_layers));
    if (weighs_) e.written_bytes += stream * (2 + 2 * int64_t(c_.num_layers));
    return e;
  }

 private:
  void reach(const std::string& when, int64_t bytes) {
    if (bytes <= peak_bytes_) return;
    peak_bytes_ = bytes;
    peak_ = when;
  }

  // From the first layer to the last: streams, a slab's activations and cache.
  int64_t steady_bytes() const {
    const KvLayer cache{.format = KvFormat::kF32,
                        .page_size = CalibrationTokens::kPageSize,
                        .width = c_.mla().record_dim(),
                        .latent = c_.kv_rank};
    const int64_t streams = spills_ ? 0 : 2 * tokens_.num_tokens() * c_.hidden * kFloat;
    const int64_t inputs = rounds_ ? rows_ * widest_ * 2 : 0;  // of products
    // A layer's blocks run on a stream of the caller's, not the model's own.
    const int64_t activations =
        GlmFlash::scratch_bytes(c_, DType::kF32, int(rows_), 0) - rows_ * c_.hidden * kFloat;
    return streams + 2 * rows_ * c_.hidden * kFloat + tokens_.max_pages() * kv_page_bytes(cache) +
           activations + inputs + attention_bytes() + kept_bytes();
  }

  // Of expanded attention over the longest sample: keys and values of its positions, and sums.
  int64_t attention_bytes() const {
    constexpr int64_t kMostPositions = 2048;  // at once
    const MlaShape s = c_.mla();
    const int64_t rows = tokens_.longest_sample(), positions = std::min(rows, kMostPositions);
    const int64_t records = positions * (s.query_dim() + s.value_dim) * (rounds_ ? 2 : kFloat);
    return c_.heads * (records + rows * (s.value_dim + 2) * kFloat);
  }

  int64_t original_bytes(const std::vector<PlannedGroup>& layer) const {
    int64_t bytes = 0;
    for (const PlannedGroup& planned : layer) {
      bytes += packed_bytes(c_, planned.group, Precision::kKept);
    }
    return bytes;
  }

  static bool crosses(const PlannedGroup& planned) {
    return planned.group.expert < 0 && planned.precision != Precision::kKept;
  }

  // Rows of a slab that one expert gets: twice the mean, as routing is uneven.
  int64_t expert_rows() const {
    return std::min(rows_, 2 * rows_ * c_.top_k / std::max(1, c_.num_experts));
  }

  // The inputs of `groups` that the original version had over a slab.
  int64_t original_inputs_bytes(const std::vector<const PlannedGroup*>& groups) const {
    int64_t bytes = 0;
    for (const PlannedGroup* planned : groups) {
      if (planned->group.expert < 0) bytes += rows_ * planned->group.cols * kFloat;
    }
    return bytes;
  }

  int64_t kept_inputs_bytes() const {
    int64_t bytes = 0;
    for (const Slab& slab : tokens_.slabs()) {
      const int64_t more = slab.batch.rows() * c_.mla().heads * c_.mla().value_dim * kFloat;
      if (bytes + more > kMostKeptBytes) break;
      bytes += more;
    }
    return bytes;
  }

  // What grows at the sight of these groups, and is kept.
  void keep(const std::vector<const PlannedGroup*>& groups) {
    for (const PlannedGroup* planned : groups) {
      const LinearGroup& group = planned->group;
      if (group.expert < 0) seen_cols_ = std::max(seen_cols_, group.cols);
      if (planned->precision == Precision::kKept) continue;
      panels_bytes_ = std::max(panels_bytes_, group.cols * (2 * kProductDepth + 256) * kFloat +
                                                  group.rows * kProductDepth * kFloat);
    }
  }

  // Inputs on the host, an expert's rows there and on the backend, matrix_product.h's panels.
  int64_t kept_bytes() const {
    const int64_t hidden = c_.hidden, inner = c_.num_experts > 0 ? c_.expert_dim : 0;
    const int64_t experts = expert_rows() * (3 * hidden + 3 * inner) + 2 * rows_ * hidden;
    const int64_t seen = std::max(rows_ * seen_cols_, expert_rows() * std::max(hidden, inner));
    return (seen + (inner > 0 ? experts : 0)) * kFloat + panels_bytes_;
  }

  // Of encode_with_feedback and its arguments, moments apart.
  static int64_t feedback_bytes(const PlannedGroup& planned) {
    if (planned.precision == Precision::kKept) return 0;
    const int64_t k = planned.group.cols, square = k * k;
    const int64_t matrix = planned.group.rows * k * kFloat;
    const int64_t factoring = 2 * matrix + square * 12;
    const int64_t moving = crosses(planned) ? 3 * matrix + square * 8 : 0;
    const int64_t checking = 3 * matrix + square * 10 + encoded_bytes(planned);
    return std::max({factoring, moving, checking});
  }

  // Of search_awq and its arguments, moments apart.
  static int64_t search_bytes(const PlannedGroup& planned) {
    const int64_t k = planned.group.cols;
    return 3 * planned.group.rows * k * kFloat + k * k * kFloat + 2 * encoded_bytes(planned);
  }

  const GlmConfig& c_;
  const CalibrationTokens& tokens_;
  const int64_t rows_;
  const bool spills_;
  const bool rounds_;  // inputs of products with BF16 weights
  bool weighs_ = false;
  int64_t widest_ = 0;
  int64_t seen_cols_ = 0;     // most columns of inputs that are seen of a whole slab
  int64_t panels_bytes_ = 0;  // of the largest matrix product
  int64_t peak_bytes_ = 0;
  std::string peak_;
};

}  // namespace

RunEstimate estimate_quantization(const Recipe& recipe, const GlmConfig& config,
                                  const CalibrationTokens* tokens, const Backend& backend,
                                  int threads, bool spills, const std::vector<TensorPlan>& target) {
  if (tokens == nullptr) {
    RunEstimate estimate = estimate_writer(target);
    int64_t most = 0, widest = 0;
    recipe.for_each([&](const PlannedGroup& planned) {
      widest = std::max(widest, planned.group.cols);
      if (encoded_bytes(planned) <= most) return;
      most = encoded_bytes(planned);
      estimate.peak = planned.group.name();
    });
    estimate.memory_bytes += most + threads * widest * kFloat;  // a row each
    return estimate;
  }
  Estimator estimator(config, *tokens, backend, spills);
  if (recipe.method == Method::kBest) estimator.weigh();
  for (const auto& layer : recipe.layers) {
    if (recipe.method == Method::kBest) {
      estimator.best(layer);
    } else {
      estimator.awq(layer);
    }
  }
  return estimator.result(recipe.method == Method::kBest ? 2 : 1, target);
}

RunEstimate estimate_pruning(const GlmConfig& config, const CalibrationTokens& tokens,
                             const Backend& backend, bool spills,
                             const std::vector<TensorPlan>& target) {
  Estimator estimator(config, tokens, backend, spills);
  for (int l = 0; l < config.num_layers; ++l) estimator.prune(l);
  return estimator.result(1, target);
}

}  // namespace nibble
