#include "compress/awq_encoder.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/numbers.h"
#include "compress/awq_search.h"
#include "compress/round_to_nearest.h"

namespace nibble {
namespace {

// An expert that saw fewer inputs than this many times its columns is rounded without scales.
constexpr double kFewestRowsPerColumn = 0.25;

float bf16(float x) {
  return bf16_to_float(float_to_bf16(x));
}

std::vector<float> ones_for(std::vector<float> factors) {
  std::fill(factors.begin(), factors.end(), 1.0f);
  return factors;
}

std::vector<float> rounded(std::vector<float> factors) {
  for (float& f : factors) f = bf16(f);
  return factors;
}

std::vector<float> values_of(const Weight& vector) {
  std::vector<float> values(static_cast<size_t>(vector.cols));
  decode_row(vector, 0, values.data());
  return values;
}

// The factors that remain when gain * factors is stored in the gain's own dtype.
StoreFactors folded_into(const Weight& norm) {
  const bool is_bf16 = norm.parts[0].format == Format::kBF16;
  return [gain = values_of(norm), is_bf16](std::vector<float> factors) {
    for (size_t k = 0; k < factors.size(); ++k) {
      const float stored = is_bf16 ? bf16(gain[k] * factors[k]) : gain[k] * factors[k];
      factors[k] = stored == 0 ? 1.0f : stored / gain[k];
    }
    return factors;
  };
}

class AwqEncoder : public LayerEncoder {
 public:
  AwqEncoder(LayerRunner& runner, ThreadPool& pool) : runner_(runner), pool_(pool) {}

  LayerReport encode_layer(const std::vector<PlannedGroup>& layer, const Emit& emit) override {
    runner_.begin_layer(layer.front().group.layer);
    report_ = {};
    observe(Block::kAttention, layer, {Site::kQkvA, Site::kQB, Site::kKvB, Site::kO});
    encode_attention(layer, emit);
    observe(Block::kFeedForward, layer,
            {Site::kGateUp, Site::kDown, Site::kExpertsGateUp, Site::kExpertsDown});
    encode_feed_forward(layer, emit);
    return std::move(report_);
  }

  void pass_layer(int layer, const GlmLayer&) override {
    runner_.begin_layer(layer);
    observe(Block::kAttention, {}, {});
    observe(Block::kFeedForward, {}, {});
  }

  void embed(const Weight& table) override { runner_.embed(&table); }

 private:
  using Key = std::pair<Site, int>;  // site, expert

  static const PlannedGroup& find(const std::vector<PlannedGroup>& layer, Site site, int expert) {
    for (const PlannedGroup& planned : layer) {
      if (planned.group.site == site && planned.group.expert == expert) return planned;
    }
    CHECK(false, "no site %d", int(site));
    return layer.front();
  }

  // Gathers the moments of the groups of `sites` and moves the stream past the block.
  void observe(Block block, const std::vector<PlannedGroup>& layer, const std::set<Site>& sites) {
    moments_.clear();
    std::set<Site> seen;
    for (const PlannedGroup& planned : layer) {
      const LinearGroup& group = planned.group;
      if (!sites.contains(group.site) || planned.precision == Precision::kKept) continue;
      seen.insert(group.site);
      moments_[{group.site, group.expert}].reset(group.cols, /*with_cross=*/false);
    }
    for (const Slab& slab : runner_.tokens().slabs()) {
      runner_.run(Version::kOriginal, block, slab, seen, /*advance=*/true,
                  [&](Site site, const ObservedInputs& in) {
                    const auto found = moments_.find({site, in.expert});
                    if (found == moments_.end()) return;
                    found->second.add(in.x, nullptr, nullptr, in.rows, pool_);
                  });
    }
  }

  std::vector<float> weights_of(const PlannedGroup& planned) {
    const LinearGroup& group = planned.group;
    std::vector<float> weights(size_t(group.rows * group.cols));
    pool_.parallel_for(group.rows, [&](int64_t r) {
      decode_rows(*planned.weight, group, r, 1, weights.data() + r * group.cols);
    });
    return weights;
  }

  // Encodes the group and returns the factors that its input must get from elsewhere.
  std::vector<float> encode(const PlannedGroup& planned, const std::vector<float>& weights,
                            const StoreFactors& store, const Emit& emit) {
    const LinearGroup& group = planned.group;
    std::vector<float> factors(static_cast<size_t>(group.cols), 1.0f);
    if (planned.precision == Precision::kKept) return factors;
    Moments& moments = moments_.at({group.site, group.expert});
    GroupReport entry{.name = group.name(), .precision = planned.precision, .tokens = moments.rows};
    entry.fell_back = double(moments.rows) < kFewestRowsPerColumn * double(group.cols);
    Encoded encoded;
    if (planned.precision == Precision::kFp8) {
      encoded = round_to_nearest(weights.data(), group.rows, group.cols, Precision::kFp8, pool_);
      encoded.input_amax = moments.amax();
    } else {
      const StoreFactors& stored = entry.fell_back ? StoreFactors(ones_for) : store;
      AwqResult result = search_awq(weights, group.rows, moments, stored, pool_);
      encoded = std::move(result.encoded);
      factors = std::move(result.factors);
      entry.error = result.output_error;
    }
    if (planned.has_pre_quant_scale) {
      for (const float f : factors) encoded.input_scale.push_back(float_to_bf16(f));
    }
    report_.groups.push_back(std::move(entry));
    emit.group(planned, encoded);
    return factors;
  }

  // Encodes the group; its factors go into the norm before it.
  void encode_after_norm(const PlannedGroup& planned, const std::vector<float>& weights,
                         const Weight& norm, const Emit& emit) {
    const std::vector<float> factors = encode(planned, weights, folded_into(norm), emit);
    std::vector<float> gain = values_of(norm);
    for (size_t k = 0; k < gain.size(); ++k) gain[k] *= factors[k];
    emit.vector(norm, gain);
  }

  void encode_attention(const std::vector<PlannedGroup>& layer, const Emit& emit) {
    const GlmLayer& original = runner_.original();
    const PlannedGroup& o = find(layer, Site::kO, -1);
    const PlannedGroup& kv_b = find(layer, Site::kKvB, -1);
    const bool fold_o = kv_b.precision != Precision::kKept;
    const auto factors =
        encode(o, weights_of(o), fold_o ? StoreFactors([](auto f) { return f; }) : ones_for, emit);
    std::vector<float> weights = weights_of(kv_b);
    const MlaShape mla = runner_.config().mla();
    for (int64_t h = 0; h < mla.heads; ++h) {
      for (int64_t j = 0; j < mla.value_dim; ++j) {
        const int64_t row = h * (mla.nope_dim + mla.value_dim) + mla.nope_dim + j;
        scale_row(weights, row, kv_b.group.cols, factors[size_t(h * mla.value_dim + j)]);
      }
    }
    encode_after_norm(kv_b, weights, original.kv_norm, emit);
    const PlannedGroup& q_b = find(layer, Site::kQB, -1);
    encode_after_norm(q_b, weights_of(q_b), original.q_norm, emit);
    const PlannedGroup& qkv_a = find(layer, Site::kQkvA, -1);
    encode_after_norm(qkv_a, weights_of(qkv_a), original.attention_norm, emit);
  }

  void encode_feed_forward(const std::vector<PlannedGroup>& layer, const Emit& emit) {
    const bool dense = runner_.config().is_dense(layer.front().group.layer);
    encode_gated(layer, Site::kGateUp, Site::kDown, -1, dense, emit);
    if (dense) return;
    for (int e = 0; e < runner_.config().num_experts; ++e) {
      encode_gated(layer, Site::kExpertsGateUp, Site::kExpertsDown, e, false, emit);
    }
  }

  // gate, up and down of a dense feed-forward or of one expert.
  void encode_gated(const std::vector<PlannedGroup>& layer, Site gate_up_site, Site down_site,
                    int expert, bool dense, const Emit& emit) {
    const PlannedGroup& down = find(layer, down_site, expert);
    const PlannedGroup& gate_up = find(layer, gate_up_site, expert);
    const bool fold_down = gate_up.precision != Precision::kKept;
    const auto factors =
        encode(down, weights_of(down),
               fold_down ? StoreFactors([](auto f) { return f; }) : ones_for, emit);
    std::vector<float> weights = weights_of(gate_up);
    for (int64_t j = 0; j < down.group.cols; ++j) {
      scale_row(weights, down.group.cols + j, gate_up.group.cols, factors[size_t(j)]);
    }
    if (dense) {
      encode_after_norm(gate_up, weights, runner_.original().feed_forward_norm, emit);
    } else {
      encode(gate_up, weights, gate_up.has_pre_quant_scale ? rounded : ones_for, emit);
    }
  }

  static void scale_row(std::vector<float>& weights, int64_t row, int64_t cols, float factor) {
    for (int64_t k = 0; k < cols; ++k) weights[size_t(row * cols + k)] *= factor;
  }

  LayerRunner& runner_;
  ThreadPool& pool_;
  std::map<Key, Moments> moments_;
  LayerReport report_;
};

}  // namespace

std::unique_ptr<LayerEncoder> make_awq_encoder(LayerRunner& runner, ThreadPool& pool) {
  return std::make_unique<AwqEncoder>(runner, pool);
}

}  // namespace nibble
