#include "compress/prune.h"

#include <memory>
#include <set>

#include "base/error.h"
#include "base/log.h"
#include "compress/journal.h"
#include "compress/source_folder.h"

namespace nibble {
namespace {

using nlohmann::ordered_json;

SaliencyMethod method_of(const std::string& name) {
  if (name == "reap") return SaliencyMethod::kReap;
  if (name == "frequency") return SaliencyMethod::kFrequency;
  throw Error("--method " + name + ": is not known; there are reap, frequency");
}

std::string layer_prefix(int layer) {
  return "model.layers." + std::to_string(layer) + ".";
}

// What depends on which experts are kept, in one layer.
struct ExpertTensors {
  static constexpr const char* kRows[] = {"mlp.gate.weight", "mlp.gate.e_score_correction_bias",
                                          "mlp.experts.gate_up_proj", "mlp.experts.down_proj"};
  static constexpr const char* kLinears[] = {"gate_proj.weight", "up_proj.weight",
                                             "down_proj.weight"};

  static std::string expert(int layer, int number) {
    return layer_prefix(layer) + "mlp.experts." + std::to_string(number) + ".";
  }
};

class PruneRun {
 public:
  PruneRun(PruneJob& job, ThreadPool& pool)
      : job_(job),
        options_(job.options),
        pool_(pool),
        method_(method_of(options_.method)),
        config_(GlmConfig::load(options_.source)),
        checkpoint_(Checkpoint::open(options_.source)) {
    refuse_quantized(options_.source, config_, checkpoint_);
    if (options_.experts < config_.top_k || options_.experts > config_.num_experts) {
      throw Error("--experts " + std::to_string(options_.experts) + ": must be between " +
                  std::to_string(config_.top_k) + " (chosen for each token) and " +
                  std::to_string(config_.num_experts) + " (of the model)");
    }
    weights_ = GlmWeights::load(checkpoint_, config_);
    plan();
  }

  RunEstimate estimate(const CalibrationTokens& tokens, const Backend& backend) const {
    return estimate_pruning(config_, tokens, backend, !options_.spill.empty(), tensors_);
  }

  std::vector<PrunedLayer> run() {
    writer_ = std::make_unique<CheckpointWriter>(
        options_.target, tensors_,
        CheckpointWriter::Options{.file_bytes = options_.file_bytes,
                                  .resume = options_.resume,
                                  .begun = Journal::is_in(partial_folder_of(options_.target))});
    LayerRunner& runner = job_.make_runner(config_, weights_);
    const nlohmann::json settings = {
        {"source", std::filesystem::absolute(options_.source).string()},
        {"method", options_.method},
        {"calibration", options_.calibration_key}};
    Journal journal(*writer_, settings, options_.resume);
    const int done = int(journal.layers().size());
    check_finite(checkpoint_, {}, pool_);
    if (done == 0) copy_tensors();
    writer_->keep();
    runner.embed(nullptr);
    std::vector<PrunedLayer> layers;
    for (int l = 0; l < config_.num_layers; ++l) {
      if (job_.on_progress) job_.on_progress({.layer = l, .num_layers = config_.num_layers});
      runner.begin_layer(l);
      advance(runner, Block::kAttention);
      if (l < done || config_.is_dense(l)) {
        advance(runner, Block::kFeedForward);
        layers.push_back(l < done ? layer_of(journal.layers()[size_t(l)])
                                  : PrunedLayer{.layer = l});
      } else {
        PrunedLayer layer{.layer = l, .saliency = expert_saliency(runner, method_, pool_)};
        layer.kept = most_salient(layer.saliency, options_.experts);
        write_layer(layer);
        layers.push_back(std::move(layer));
      }
      if (l >= done) journal.add_layer(json_of(layers.back()));
    }
    write_files(layers);
    journal.remove();
    writer_->finish();
    return layers;
  }

 private:
  static nlohmann::json json_of(const PrunedLayer& layer) {
    return {{"layer", layer.layer}, {"kept", layer.kept}, {"saliency", layer.saliency}};
  }
  static PrunedLayer layer_of(const nlohmann::json& json) {
    return {.layer = json.at("layer").get<int>(),
            .kept = json.at("kept").get<std::vector<int>>(),
            .saliency = json.at("saliency").get<std::vector<double>>()};
  }

  bool is_mtp(const std::string& name) const {
    for (int l = config_.num_layers; l < config_.num_layers + config_.mtp_layers; ++l) {
      if (name.starts_with(layer_prefix(l))) return true;
    }
    return false;
  }

  void plan() {
    std::set<std::string> of_experts;
    for (int l = config_.dense_layers; l < config_.num_layers; ++l) {
      for (const char* part : ExpertTensors::kRows) plan_rows(layer_prefix(l) + part, of_experts);
      for (int e = 0; e < config_.num_experts; ++e) {
        for (const char* linear : ExpertTensors::kLinears) {
          const std::string name = ExpertTensors::expert(l, e) + linear;
          const StoredTensor* tensor = checkpoint_.find(name);
          if (tensor == nullptr) continue;  // packed
          of_experts.insert(name);
          if (e < options_.experts) tensors_.push_back({name, tensor->dtype, tensor->shape});
        }
      }
    }
    bool left_out = false;
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      left_out |= is_mtp(name);
      if (of_experts.contains(name) || is_mtp(name)) continue;
      copied_.push_back(name);
      tensors_.push_back({name, tensor.dtype, tensor.shape});
    }
    if (left_out) log_warning("the MTP layer is left out: its experts cannot be calibrated");
  }

  // A tensor whose first dimension counts experts.
  void plan_rows(const std::string& name, std::set<std::string>& of_experts) {
    const StoredTensor* tensor = checkpoint_.find(name);
    if (tensor == nullptr) return;
    of_experts.insert(name);
    std::vector<int64_t> shape = tensor->shape;
    shape[0] = options_.experts;
    tensors_.push_back({name, tensor->dtype, shape});
  }

  void copy_tensors() {
    for (const std::string& name : copied_) {
      const StoredTensor& tensor = *checkpoint_.find(name);
      writer_->write(name, tensor.data, tensor.size_bytes);
    }
  }

  void advance(LayerRunner& runner, Block block) {
    for (const Slab& slab : runner.tokens().slabs()) {
      runner.run(Version::kOriginal, block, slab, {}, /*advance=*/true, {});
    }
  }

  void write_layer(const PrunedLayer& layer) {
    for (const char* part : ExpertTensors::kRows) {
      const std::string name = layer_prefix(layer.layer) + part;
      const StoredTensor* tensor = checkpoint_.find(name);
      if (tensor == nullptr) continue;
      const int64_t row_bytes = tensor->size_bytes / tensor->shape[0];
      std::vector<uint8_t> rows;
      for (const int e : layer.kept) {
        const uint8_t* row = tensor->data + e * row_bytes;
        rows.insert(rows.end(), row, row + row_bytes);
      }
      writer_->write(name, rows.data(), int64_t(rows.size()));
    }
    for (size_t i = 0; i < layer.kept.size(); ++i) {
      for (const char* linear : ExpertTensors::kLinears) {
        const StoredTensor* tensor =
            checkpoint_.find(ExpertTensors::expert(layer.layer, layer.kept[i]) + linear);
        if (tensor == nullptr) continue;
        writer_->write(ExpertTensors::expert(layer.layer, int(i)) + linear, tensor->data,
                       tensor->size_bytes);
      }
    }
  }

  void write_files(const std::vector<PrunedLayer>& layers) {
    copy_files(options_.source, *writer_);
    ordered_json config = read_config(options_.source);
    for (const char* key : {"n_routed_experts", "num_local_experts", "num_experts"}) {
      if (config.contains(key)) config[key] = options_.experts;
    }
    if (config.contains("num_nextn_predict_layers")) config["num_nextn_predict_layers"] = 0;
    writer_->write_file("config.json", config.dump(2) + "\n");
    nlohmann::json report = {{"method", options_.method}, {"layers", nlohmann::json::array()}};
    for (const PrunedLayer& layer : layers) report["layers"].push_back(json_of(layer));
    writer_->write_file("pruning_report.json", report.dump(1) + "\n");
  }

  PruneJob& job_;
  const PruneOptions& options_;
  ThreadPool& pool_;
  const SaliencyMethod method_;
  const GlmConfig config_;
  const Checkpoint checkpoint_;
  GlmWeights weights_;
  std::vector<TensorPlan> tensors_;
  std::vector<std::string> copied_;
  std::unique_ptr<CheckpointWriter> writer_;
};

}  // namespace

std::vector<PrunedLayer> PruneJob::run(ThreadPool& pool) {
  return PruneRun(*this, pool).run();
}

RunEstimate PruneJob::estimate(const CalibrationTokens& tokens, const Backend& backend,
                               ThreadPool& pool) {
  check_is_new(options.target);
  return PruneRun(*this, pool).estimate(tokens, backend);
}

}  // namespace nibble
