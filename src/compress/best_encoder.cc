#include "compress/best_encoder.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "compress/error_feedback.h"
#include "compress/quantized_stack.h"
#include "compress/round_to_nearest.h"
#include "compress/token_weights.h"

namespace nibble {
namespace {

// An expert that saw fewer inputs than this many times its columns is rounded without them.
constexpr double kFewestRowsPerColumn = 0.25;

bool is_expert(Site site) {
  return site == Site::kExpertsGateUp || site == Site::kExpertsDown;
}

class BestEncoder : public LayerEncoder {
 public:
  BestEncoder(LayerRunner& runner, ThreadPool& pool) : runner_(runner), pool_(pool) {}

  LayerReport encode_layer(const std::vector<PlannedGroup>& layer, const Emit& emit) override {
    LayerReport report;
    runner_.begin_layer(layer.front().group.layer);
    for (const Stage& stage : best_stages()) {
      observe(stage, layer);
      encode(stage, layer, emit, report);
      if (stage.last) advance_quantized(stage);
    }
    report.stream_error = runner_.stream_error();
    return report;
  }

  void pass_layer(int layer, const GlmLayer& quantized) override {
    runner_.begin_layer(layer);
    for (const Site site : {Site::kQkvA, Site::kQB, Site::kKvB, Site::kO, Site::kGateUp,
                            Site::kDown, Site::kExpertsGateUp, Site::kExpertsDown}) {
      if (!weight_at(quantized, site).empty()) runner_.replace(site, weight_at(quantized, site));
    }
    for (const Block block : {Block::kAttention, Block::kFeedForward}) {
      advance(Version::kOriginal, block);
      advance(Version::kQuantized, block);
    }
  }

  std::vector<float> measure_token_weights(
      const std::function<void(int layer)>& on_layer) override {
    return nibble::measure_token_weights(runner_, pool_, on_layer);
  }

  void use_token_weights(std::vector<float> weights) override {
    CHECK(int64_t(weights.size()) == runner_.tokens().num_tokens());
    token_weights_ = std::move(weights);
  }

  void embed(const Weight& table) override { runner_.embed(&table); }

 private:
  using Key = std::pair<Site, int>;  // site, expert

  static Key key_of(const LinearGroup& group) { return {group.site, group.expert}; }

  void advance(Version version, Block block) {
    for (const Slab& slab : runner_.tokens().slabs()) {
      runner_.run(version, block, slab, {}, /*advance=*/true, {});
    }
  }

  void advance_quantized(const Stage& stage) {
    const auto& slabs = runner_.tokens().slabs();
    for (size_t i = 0; i < slabs.size(); ++i) {
      if (i < kept_.size()) {
        runner_.finish(Version::kQuantized, stage.block, slabs[i], Site::kO, kept_[i].data());
      } else {
        runner_.run(Version::kQuantized, stage.block, slabs[i], {}, /*advance=*/true, {});
      }
    }
    kept_.clear();
  }

  // Gathers the moments of the stage's groups. The original version runs on to the end of the
  // block in its last stage.
  void observe(const Stage& stage, const std::vector<PlannedGroup>& layer) {
    moments_.clear();
    std::set<Site> sites, original_sites;
    for (const PlannedGroup& planned : layer) {
      const LinearGroup& group = planned.group;
      if (!stage.sites.contains(group.site)) continue;
      sites.insert(group.site);
      const bool with_cross = !is_expert(group.site) && planned.precision != Precision::kKept;
      if (with_cross) original_sites.insert(group.site);
      moments_[key_of(group)].reset(group.cols, with_cross);
    }
    std::map<Site, std::vector<float>> original;
    int64_t kept_bytes = 0;
    for (const Slab& slab : runner_.tokens().slabs()) {
      if (stage.last || !original_sites.empty()) {
        runner_.run(Version::kOriginal, stage.block, slab, original_sites, stage.last,
                    [&](Site site, const ObservedInputs& in) {
                      original[site].assign(in.x, in.x + in.rows * in.cols);
                    });
      }
      runner_.run(Version::kQuantized, stage.block, slab, sites, /*advance=*/false,
                  [&](Site site, const ObservedInputs& in) {
                    moments_.at({site, in.expert})
                        .add(in.x, original[site].data(), weights_of(slab, in), in.rows, pool_);
                    if (site != Site::kO) return;
                    kept_bytes += in.rows * in.cols * int64_t(sizeof(float));
                    if (kept_bytes <= kMostKeptBytes)
                      kept_.emplace_back(in.x, in.x + in.rows * in.cols);
                  });
    }
  }

  // Of the tokens whose inputs these are; valid until the next call.
  const float* weights_of(const Slab& slab, const ObservedInputs& in) {
    const float* weights = token_weights_.data() + slab.first_row;
    if (in.tokens == nullptr) return weights;
    expert_weights_.resize(size_t(in.rows));
    for (int64_t r = 0; r < in.rows; ++r) expert_weights_[size_t(r)] = weights[in.tokens[r]];
    return expert_weights_.data();
  }

  void encode(const Stage& stage, const std::vector<PlannedGroup>& layer, const Emit& emit,
              LayerReport& report) {
    for (const Site site : stage.sites) {
      std::vector<const PlannedGroup*> groups;
      for (const PlannedGroup& planned : layer) {
        if (planned.group.site == site) groups.push_back(&planned);
      }
      if (groups.empty()) continue;
      const Weight& original = weight_at(runner_.original(), site);
      QuantizedStack stack(original);
      bool changed = false;
      for (const PlannedGroup* planned : groups) {
        if (planned->precision == Precision::kKept) continue;
        const auto moments = moments_.find(key_of(planned->group));
        Encoded encoded = encode_group(*planned, original, moments->second, report);
        moments_.erase(moments);
        emit.group(*planned, encoded);
        stack.add(planned->group, std::move(encoded));
        changed = true;
      }
      if (changed) runner_.replace(site, stack.take(groups));
    }
  }

  Encoded encode_group(const PlannedGroup& planned, const Weight& original, const Moments& moments,
                       LayerReport& report) {
    const LinearGroup& group = planned.group;
    GroupReport entry{.name = group.name(), .precision = planned.precision, .tokens = moments.rows};
    std::vector<float> weights(size_t(group.rows * group.cols));
    pool_.parallel_for(group.rows, [&](int64_t r) {
      decode_rows(original, group, r, 1, weights.data() + r * group.cols);
    });
    entry.fell_back = double(moments.rows) < kFewestRowsPerColumn * double(group.cols);
    Moments none;
    if (entry.fell_back) none.reset(group.cols, /*with_cross=*/false);
    std::vector<OutputHessian> coupled;
    if (planned.precision == Precision::kNvfp4) {
      coupled = output_hessians(group, runner_.original(), runner_.config(), pool_);
    }
    FeedbackResult result =
        encode_with_feedback(group.name(), weights, group.rows, planned.precision,
                             entry.fell_back ? none : moments, coupled, options_, pool_);
    result.encoded.input_amax = moments.amax();
    entry.error = result.output_error;
    report.groups.push_back(std::move(entry));
    return std::move(result.encoded);
  }

  LayerRunner& runner_;
  ThreadPool& pool_;
  const FeedbackOptions options_{};
  std::vector<float> token_weights_, expert_weights_;
  std::map<Key, Moments> moments_;
  std::vector<std::vector<float>> kept_;  // inputs of o of the first slabs
};

}  // namespace

const std::vector<Stage>& best_stages() {
  static const std::vector<Stage> stages = {
      {Block::kAttention, {Site::kQkvA}},
      {Block::kAttention, {Site::kQB, Site::kKvB}},
      {Block::kAttention, {Site::kO}, true},
      {Block::kFeedForward, {Site::kGateUp, Site::kExpertsGateUp}},
      {Block::kFeedForward, {Site::kDown, Site::kExpertsDown}, true},
  };
  return stages;
}

std::unique_ptr<LayerEncoder> make_best_encoder(LayerRunner& runner, ThreadPool& pool) {
  return std::make_unique<BestEncoder>(runner, pool);
}

}  // namespace nibble
