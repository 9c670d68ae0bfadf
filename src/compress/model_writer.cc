#include "compress/model_writer.h"

#include <algorithm>
#include <fstream>

#include "base/check.h"
#include "checkpoint/checkpoint_writer.h"
#include "compress/disk_layout.h"
#include "compress/source_folder.h"

namespace nibble {
namespace {

using nlohmann::ordered_json;

constexpr char kGeneration[] = "generation_config.json";

bool is_nvfp4(const Weight& weight) {
  return weight.parts.at(0).format == Format::kNvfp4;
}

// Every linear in the format that it has.
Recipe recipe_of(const GlmConfig& config, const GlmWeights& weights) {
  QuantizeOptions options{.recipe = "rtn"};
  options.embed = is_nvfp4(weights.embedding) ? "nvfp4" : "bf16";
  options.lm_head = is_nvfp4(weights.lm_head) ? "nvfp4" : "bf16";
  for (int l = 0; l < config.num_layers; ++l) {
    for (const LinearGroup& group : linear_groups(config, l)) {
      if (is_nvfp4(weight_at(weights.layers[size_t(l)], group.site))) continue;
      for (const Linear& linear : group.linears) options.exclude.push_back(linear.name);
    }
  }
  return Recipe::make(options, config, weights);
}

class ModelWriter {
 public:
  ModelWriter(const GlmConfig& config, const GlmWeights& weights,
              const std::filesystem::path& target)
      : config_(config), recipe_(recipe_of(config, weights)), writer_(target, plan(weights), {}) {}

  void write(const std::function<void(WrittenShare)>& progress) {
    int64_t done = 0;
    const auto advance = [&](int64_t bytes) {
      done += bytes;
      if (progress) progress({.done_bytes = done, .total_bytes = writer_.size_bytes()});
    };
    for (const Weight* w : plain_) {
      const WeightPart& part = w->parts.at(0);
      CHECK(w->parts.size() == 1, "%s", w->name.c_str());
      writer_.write(plan_of(*w).name, part.values, plan_of(*w).size_bytes());
      advance(storage_bytes(*w));
    }
    recipe_.for_each([&](const PlannedGroup& planned) {
      write_stored(recipe_, planned, writer_);
      advance(total_bytes(plan_tensors(recipe_, planned)));
    });
  }

  void write_texts(const std::filesystem::path& texts) {
    copy_files(texts, writer_);
    ordered_json config = config_.to_json();
    config["quantization_config"] = quantization_config(recipe_, config_);
    writer_.write_file("config.json", config.dump(2) + "\n");
    writer_.write_file("hf_quant_config.json", hf_quant_config(recipe_, config_).dump(4) + "\n");
    if (!std::filesystem::exists(texts / kGeneration)) return;
    std::ifstream file(texts / kGeneration);
    ordered_json defaults = ordered_json::parse(file);
    defaults["eos_token_id"] = config_.eos_token_ids;
    defaults.erase("pad_token_id");
    writer_.write_file(kGeneration, defaults.dump(2) + "\n");
  }

  void finish() { writer_.finish(); }

 private:
  // Norms and routers, which are never quantized.
  static TensorPlan plan_of(const Weight& w) {
    const DType dtype = w.parts.at(0).format == Format::kF32 ? DType::kF32 : DType::kBF16;
    if (w.use == Use::kVector) return {w.name, dtype, {w.cols}};
    return {w.name + ".weight", dtype, {w.rows, w.cols}};
  }

  std::vector<TensorPlan> plan(const GlmWeights& weights) {
    for (const GlmLayer& layer : weights.layers) {
      for (const Weight* w : {&layer.attention_norm, &layer.q_norm, &layer.kv_norm,
                              &layer.feed_forward_norm, &layer.router, &layer.router_bias}) {
        if (!w->empty()) plain_.push_back(w);
      }
    }
    plain_.push_back(&weights.final_norm);
    std::vector<TensorPlan> tensors;
    for (const Weight* w : plain_) tensors.push_back(plan_of(*w));
    recipe_.for_each([&](const PlannedGroup& planned) {
      std::ranges::copy(plan_tensors(recipe_, planned), std::back_inserter(tensors));
    });
    return tensors;
  }

  const GlmConfig& config_;
  const Recipe recipe_;
  std::vector<const Weight*> plain_;
  CheckpointWriter writer_;
};

}  // namespace

void write_model(const GlmConfig& config, const GlmWeights& weights,
                 const std::filesystem::path& texts, const std::filesystem::path& target,
                 const std::function<void(WrittenShare)>& progress) {
  ModelWriter writer(config, weights, target);
  writer.write(progress);
  writer.write_texts(texts);
  writer.finish();
}

}  // namespace nibble
