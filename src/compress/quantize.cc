#include "compress/quantize.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "base/numbers.h"
#include "compress/disk_layout.h"
#include "compress/journal.h"
#include "compress/quantized_stack.h"
#include "compress/round_to_nearest.h"
#include "compress/source_folder.h"

namespace nibble {
namespace {

using nlohmann::ordered_json;

constexpr char kReport[] = "quantization_report.json";

// What a resumed run must have in common with the one that was stopped.
nlohmann::json settings_of(const QuantizeOptions& o, const Recipe& recipe) {
  return {{"source", std::filesystem::absolute(o.source).string()},
          {"recipe", o.recipe},
          {"format", o.format},
          {"label", recipe.label()},
          {"budget", o.budget},
          {"calibration", o.calibration_key}};
}

// The tensors of the source that a group may be made of.
std::vector<std::string> names_of(const PlannedGroup& planned) {
  std::vector<std::string> names = {planned.weight->name};  // packed experts
  for (const Linear& linear : planned.group.linears) names.push_back(linear.name + ".weight");
  return names;
}

class QuantizeRun {
 public:
  explicit QuantizeRun(QuantizeJob& job)
      : job_(job),
        options_(job.options),
        config_(GlmConfig::load(options_.source)),
        checkpoint_(Checkpoint::open(options_.source)) {
    refuse_quantized(options_.source, config_, checkpoint_);
    weights_ = GlmWeights::load(checkpoint_, config_);
    recipe_ = Recipe::make(options_, config_, weights_);
    plan();
  }

  void spend_budget() {
    if (options_.budget == 0) return;
    const auto bytes = int64_t(options_.budget * double(total_bytes(tensors_)));
    nibble::spend_budget(job_.measure_losses(recipe_, config_, weights_), bytes, recipe_);
    plan();
  }

  RunEstimate estimate(const CalibrationTokens* tokens, const Backend& backend, int threads) const {
    RunEstimate estimate = estimate_quantization(recipe_, config_, tokens, backend, threads,
                                                 !options_.spill.empty(), tensors_);
    const auto extra = int64_t(options_.budget * double(estimate.target_bytes));
    estimate.target_bytes += extra;
    estimate.written_bytes += extra;
    return estimate;
  }

  QuantizeReport run(ThreadPool& pool) {
    check_is_new(options_.target);
    spend_budget();
    writer_ = std::make_unique<CheckpointWriter>(
        options_.target, tensors_,
        CheckpointWriter::Options{.file_bytes = options_.file_bytes,
                                  .resume = options_.resume,
                                  .begun = Journal::is_in(partial_folder_of(options_.target))});
    auto encoder = job_.make_encoder(recipe_, config_, weights_);
    Journal journal(*writer_, settings_of(options_, recipe_), options_.resume);
    check_weights(pool);
    if (recipe_.calibrates()) writer_->keep();
    weigh_tokens(*encoder, journal);
    const int done = int(journal.layers().size());
    for (const auto& layer : journal.layers()) layers_.push_back(layer_report_of(layer));
    if (done > 0) {
      pass_layers(*encoder, done);
    } else {
      copy_tensors();
      recipe_.for_each(
          [&](const PlannedGroup& planned) { write_unit_scales(recipe_, planned, *writer_); });
      encoder->embed(write_single(recipe_.embedding, pool));
    }
    for (int l = done; l < config_.num_layers; ++l) {
      progress(l);
      layers_.push_back(encode_layer(*encoder, recipe_.layers[size_t(l)]));
      layers_.back().layer = l;
      journal.add_layer(to_json(layers_.back()));
    }
    write_single(recipe_.lm_head, pool);
    progress(config_.num_layers);
    const QuantizeReport report{.label = recipe_.label(),
                                .layers = layers_,
                                .source_bytes = checkpoint_.size_bytes(),
                                .target_bytes = writer_->size_bytes()};
    write_files(report);
    journal.remove();
    writer_->finish();
    return report;
  }

 private:
  // Tensors in the order of the model: what is copied first, then layer by layer.
  void plan() {
    std::set<std::string> replaced;
    tensors_.clear();
    copied_.clear();
    weights_total_ = 0;
    recipe_.for_each([&](const PlannedGroup& planned) {
      for (const std::string& name : names_of(planned)) replaced.insert(name);
    });
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      if (replaced.contains(name)) continue;
      copied_.push_back(name);
      tensors_.push_back({name, tensor.dtype, tensor.shape});
    }
    recipe_.for_each([&](const PlannedGroup& planned) {
      for (TensorPlan& tensor : plan_tensors(recipe_, planned)) {
        tensors_.push_back(std::move(tensor));
      }
      weights_total_ += planned.group.rows * planned.group.cols;
    });
  }

  void weigh_tokens(LayerEncoder& encoder, Journal& journal) {
    if (journal.token_weights().empty()) {
      std::vector<float> weights = encoder.measure_token_weights([&](int layer) {
        if (!job_.on_progress) return;
        job_.on_progress({.weighing = true,
                          .share = double(layer) / (config_.num_layers + 1),
                          .layer = layer,
                          .num_layers = config_.num_layers});
      });
      if (weights.empty()) return;
      journal.keep_token_weights(std::move(weights));
    }
    encoder.use_token_weights(journal.token_weights());
  }

  void copy_tensors() {
    for (const std::string& name : copied_) {
      const StoredTensor& tensor = *checkpoint_.find(name);
      writer_->write(name, tensor.data, tensor.size_bytes);
    }
  }

  void write_group(const PlannedGroup& planned, Encoded& encoded) {
    encoded.tensor_scale = stored_tensor_scale(recipe_, planned, encoded.tensor_scale);
    write_encoded(recipe_, planned, encoded, *writer_);
  }

  // Embedding or head: rounded to nearest by all recipes. Gives the values of what is stored.
  Weight write_single(const PlannedGroup& planned, ThreadPool& pool) {
    weights_done_ += planned.group.rows * planned.group.cols;
    if (planned.precision == Precision::kKept) {
      write_stored(recipe_, planned, *writer_);
      return *planned.weight;
    }
    Encoded encoded = round_to_nearest(*planned.weight, planned.group, planned.precision, pool);
    write_group(planned, encoded);
    QuantizedStack stack(*planned.weight);
    stack.add(planned.group, std::move(encoded));
    return stack.take({&planned});
  }

  LayerReport encode_layer(LayerEncoder& encoder, const std::vector<PlannedGroup>& layer) {
    for (const PlannedGroup& planned : layer) {
      if (planned.precision == Precision::kKept) write_stored(recipe_, planned, *writer_);
    }
    const LayerEncoder::Emit emit{
        .group = [&](const PlannedGroup& planned,
                     Encoded& encoded) { write_group(planned, encoded); },
        .vector = [&](const Weight& norm,
                      const std::vector<float>& values) { write_vector(norm, values); }};
    LayerReport report = encoder.encode_layer(layer, emit);
    for (const PlannedGroup& planned : layer) {
      weights_done_ += planned.group.rows * planned.group.cols;
    }
    return report;
  }

  void write_vector(const Weight& vector, const std::vector<float>& values) {
    if (vector.parts[0].format == Format::kF32) {
      return writer_->write(vector.name, values.data(), int64_t(values.size()) * 4);
    }
    std::vector<uint16_t> rounded;
    for (const float value : values) rounded.push_back(float_to_bf16(value));
    writer_->write(vector.name, rounded.data(), int64_t(rounded.size()) * 2);
  }

  void pass_layers(LayerEncoder& encoder, int done) {
    GlmConfig config = config_;
    config.quantization = {};
    const GlmWeights written =
        GlmWeights::load(Checkpoint::open(writer_->partial_folder()), config);
    encoder.embed(written.embedding);
    for (int l = 0; l < done; ++l) {
      progress(l);
      encoder.pass_layer(l, written.layers[size_t(l)]);
      for (const PlannedGroup& planned : recipe_.layers[size_t(l)]) {
        weights_done_ += planned.group.rows * planned.group.cols;
      }
    }
  }

  // Calibration takes long: what it would stumble over later is found at once. Without it the
  // linears are checked when their time comes, as they are read only then.
  void check_weights(ThreadPool& pool) {
    std::set<std::string> later;
    if (!recipe_.calibrates()) {
      recipe_.for_each([&](const PlannedGroup& planned) {
        if (planned.precision == Precision::kKept) return;
        for (const std::string& name : names_of(planned)) later.insert(name);
      });
    }
    check_finite(checkpoint_, later, pool);
  }

  void write_files(const QuantizeReport& report) {
    copy_files(options_.source, *writer_);
    ordered_json config = read_config(options_.source);
    config["quantization_config"] = quantization_config(recipe_, config_);
    writer_->write_file("config.json", config.dump(2) + "\n");
    if (recipe_.format == DiskFormat::kModelOpt) {
      writer_->write_file("hf_quant_config.json", hf_quant_config(recipe_, config_).dump(4) + "\n");
    }
    writer_->write_file(kReport, to_json(report).dump(1) + "\n");
  }

  void progress(int layer) {
    if (!job_.on_progress) return;
    job_.on_progress({.share = double(weights_done_) / double(weights_total_),
                      .layer = layer,
                      .num_layers = config_.num_layers});
  }

  QuantizeJob& job_;
  const QuantizeOptions& options_;
  const GlmConfig config_;
  const Checkpoint checkpoint_;
  GlmWeights weights_;
  Recipe recipe_;
  std::vector<TensorPlan> tensors_;
  std::vector<std::string> copied_;
  std::unique_ptr<CheckpointWriter> writer_;
  std::vector<LayerReport> layers_;
  int64_t weights_done_ = 0, weights_total_ = 0;
};

class NearestEncoder : public LayerEncoder {
 public:
  explicit NearestEncoder(ThreadPool& pool) : pool_(pool) {}

  LayerReport encode_layer(const std::vector<PlannedGroup>& layer, const Emit& emit) override {
    LayerReport report;
    for (const PlannedGroup& planned : layer) {
      if (planned.precision == Precision::kKept) continue;
      Encoded encoded = round_to_nearest(*planned.weight, planned.group, planned.precision, pool_);
      report.groups.push_back({.name = planned.group.name(),
                               .precision = planned.precision,
                               .error = weight_error(planned, encoded)});
      emit.group(planned, encoded);
    }
    return report;
  }
  void pass_layer(int, const GlmLayer&) override {}
  void embed(const Weight&) override {}

 private:
  double weight_error(const PlannedGroup& planned, const Encoded& encoded) {
    const size_t cols = size_t(encoded.cols);
    std::vector<double> change(size_t(pool_.size())), value(size_t(pool_.size()));
    pool_.run([&](int share) {
      std::vector<float> before(cols), after(cols);
      const int64_t last = encoded.rows * (share + 1) / pool_.size();
      for (int64_t r = encoded.rows * share / pool_.size(); r < last; ++r) {
        decode_rows(*planned.weight, planned.group, r, 1, before.data());
        encoded.decode_row(r, after.data());
        for (size_t k = 0; k < cols; ++k) {
          const double d = double(after[k]) - before[k];
          change[size_t(share)] += d * d;
          value[size_t(share)] += double(before[k]) * before[k];
        }
      }
    });
    double changes = 0, values = 0;
    for (const double x : change) changes += x;
    for (const double x : value) values += x;
    return values > 0 ? std::sqrt(changes / values) : 0;
  }

  ThreadPool& pool_;
};

}  // namespace

QuantizeReport QuantizeJob::run(ThreadPool& pool) {
  return QuantizeRun(*this).run(pool);
}

RunEstimate QuantizeJob::estimate(const CalibrationTokens* tokens, const Backend& backend,
                                  int threads) {
  check_is_new(options.target);
  return QuantizeRun(*this).estimate(tokens, backend, threads);
}

std::unique_ptr<LayerEncoder> make_nearest_encoder(ThreadPool& pool) {
  return std::make_unique<NearestEncoder>(pool);
}

}  // namespace nibble
