#include "compress/recipe.h"

#include "base/error.h"
#include "quant/nvfp4.h"

namespace nibble {
namespace {

template <typename Value>
Value choose(const std::string& flag, const std::string& name,
             const std::vector<std::pair<std::string, Value>>& choices) {
  std::string known;
  for (const auto& [choice, value] : choices) {
    if (choice == name) return value;
    known += (known.empty() ? "" : ", ") + choice;
  }
  throw Error(flag + " " + name + ": is not known; there are " + known);
}

// Linears that a flag's patterns select, a group at a time.
class Selection {
 public:
  Selection(std::string flag, const std::vector<std::string>& patterns)
      : flag_(std::move(flag)), patterns_(patterns), used_(patterns.size(), false) {}

  bool takes(const LinearGroup& group) {
    size_t taken = 0;
    for (const Linear& linear : group.linears) {
      bool matched = false;
      for (size_t i = 0; i < patterns_.size(); ++i) {
        if (!matches_pattern(linear.name, patterns_[i])) continue;
        matched = used_[i] = true;
      }
      taken += matched;
    }
    if (taken != 0 && taken != group.linears.size()) {
      throw Error(flag_ + ": takes only one of " + group.linears[0].name + " and " +
                  group.linears[1].name + ", which engines fuse; match both or neither");
    }
    return taken != 0;
  }

  void check_all_used() const {
    for (size_t i = 0; i < patterns_.size(); ++i) {
      if (used_[i]) continue;
      throw Error(flag_ + " " + patterns_[i] +
                  ": matches no linear; names are such as "
                  "model.layers.1.self_attn.q_a_proj, * stands for any text");
    }
  }

 private:
  std::string flag_;
  const std::vector<std::string>& patterns_;
  std::vector<bool> used_;
};

PlannedGroup single(const std::string& name, const Weight& weight, Precision precision) {
  return {.group = {.layer = -1,
                    .rows = weight.rows,
                    .cols = weight.cols,
                    .linears = {{name, weight.rows}}},
          .weight = &weight,
          .precision = precision};
}

bool keeps_pre_quant_scale(const LinearGroup& group, bool dense) {
  return group.site == Site::kExpertsGateUp || (group.site == Site::kGateUp && !dense);
}

}  // namespace

Recipe Recipe::make(const QuantizeOptions& o, const GlmConfig& c, const GlmWeights& weights) {
  Recipe recipe;
  recipe.method = choose<Method>(
      "--recipe", o.recipe,
      {{"best", Method::kBest}, {"awq-lite", Method::kAwqLite}, {"rtn", Method::kRoundToNearest}});
  recipe.format = choose<DiskFormat>("--format", o.format,
                                     {{"modelopt", DiskFormat::kModelOpt},
                                      {"compressed-tensors", DiskFormat::kCompressedTensors}});
  recipe.kv_cache_fp8 =
      choose<bool>("--kv-cache-dtype", o.kv_cache_dtype, {{"auto", false}, {"fp8", true}});
  recipe.embedding =
      single("model.embed_tokens", weights.embedding,
             choose<Precision>("--embed", o.embed,
                               {{"bf16", Precision::kKept}, {"nvfp4", Precision::kNvfp4}}));
  recipe.lm_head = single(
      "lm_head", weights.lm_head,
      choose<Precision>(
          "--lm-head", o.lm_head,
          {{"bf16", Precision::kKept}, {"fp8", Precision::kFp8}, {"nvfp4", Precision::kNvfp4}}));

  Selection excluded("--exclude", o.exclude), fp8("--fp8", o.fp8);
  for (int l = 0; l < c.num_layers; ++l) {
    auto& layer = recipe.layers.emplace_back();
    for (LinearGroup& group : linear_groups(c, l)) {
      PlannedGroup planned{.group = group,
                           .weight = &weight_at(weights.layers[size_t(l)], group.site)};
      if (fp8.takes(group)) planned.precision = Precision::kFp8;
      if (excluded.takes(group)) planned.precision = Precision::kKept;
      planned.has_pre_quant_scale = recipe.method == Method::kAwqLite && !o.fold &&
                                    planned.precision == Precision::kNvfp4 &&
                                    keeps_pre_quant_scale(group, c.is_dense(l));
      layer.push_back(std::move(planned));
    }
  }
  excluded.check_all_used();
  fp8.check_all_used();
  if (o.budget > 0 && !recipe.calibrates()) {
    throw Error("--budget: is spent by losses over calibration text, which recipe rtn has not");
  }
  if (recipe.format == DiskFormat::kCompressedTensors &&
      (recipe.has(Precision::kFp8) || o.budget > 0 || recipe.method == Method::kAwqLite)) {
    throw Error("--format compressed-tensors: holds plain NVFP4 only, neither FP8 nor awq-lite");
  }
  const auto finish = [&](PlannedGroup& planned) {
    planned.has_input_scale = recipe.calibrates() && planned.precision != Precision::kKept &&
                              planned.group.linears[0].name != "model.embed_tokens";
    if (planned.precision == Precision::kNvfp4 && planned.group.cols % nvfp4::kBlock != 0) {
      throw Error(planned.group.linears[0].name + ".weight: has " +
                  std::to_string(planned.group.cols) +
                  " columns; NVFP4 needs a multiple of 16 (leave it out by --exclude)");
    }
  };
  finish(recipe.embedding);
  finish(recipe.lm_head);
  for (auto& layer : recipe.layers) {
    for (PlannedGroup& planned : layer) finish(planned);
  }
  return recipe;
}

std::string Recipe::label() const {
  if (has(Precision::kFp8)) return "MIXED_PRECISION";
  bool scaled_inputs = false;
  for_each([&](const PlannedGroup& planned) { scaled_inputs |= planned.has_pre_quant_scale; });
  if (scaled_inputs) return "NVFP4_AWQ";
  return calibrates() ? "NVFP4" : "W4A16_NVFP4";
}

bool Recipe::has(Precision precision) const {
  bool found = false;
  for_each([&](const PlannedGroup& planned) { found |= planned.precision == precision; });
  return found;
}

}  // namespace nibble
