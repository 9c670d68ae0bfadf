// Quantization of a checkpoint, layer by layer: plan, encode, write, with what has been done kept
// for a run that resumes.
#pragma once

#include <functional>
#include <memory>

#include "base/thread_pool.h"
#include "compress/budget.h"
#include "compress/recipe.h"
#include "compress/report.h"
#include "compress/run_estimate.h"

namespace nibble {

// How a recipe encodes; one object works through the layers in rising order.
class LayerEncoder {
 public:
  struct Emit {
    // The tensor scale becomes the one that is stored.
    std::function<void(const PlannedGroup&, Encoded&)> group{};
    // New values of a norm's gain; rounded to the dtype that it has.
    std::function<void(const Weight&, const std::vector<float>&)> vector{};
  };

  virtual ~LayerEncoder() = default;
  // Encodes all groups of the layer that are not kept, in any order.
  virtual LayerReport encode_layer(const std::vector<PlannedGroup>& layer, const Emit& emit) = 0;
  // The layer is done already: `quantized` is what an earlier run wrote.
  virtual void pass_layer(int layer, const GlmLayer& quantized) = 0;
  // Before all else: how much each calibration token counts, for a recipe that asks. A run that
  // resumes gives back what the one before measured. `on_layer` is called before each layer of the
  // original model that the tokens run through.
  virtual std::vector<float> measure_token_weights(const std::function<void(int layer)>&) {
    return {};
  }
  virtual void use_token_weights(std::vector<float>) {}
  // Before all layers: the embedding of the quantized model.
  virtual void embed(const Weight& table) = 0;
};

struct QuantizeProgress {
  bool weighing = false;  // tokens, before any weight is encoded
  double share = 0;       // done: of the weights, or while weighing of the layers; 0 .. 1
  int layer = 0;          // the one at work
  int num_layers = 0;
};

// Opens the source, makes the recipe and writes the target. `make_encoder` is called once, with the
// model's own weights, not uploaded. Throws Error: whatever of source, target or options is wrong;
// then nothing stands at `options.target`.
struct QuantizeJob {
  using MakeEncoder = std::function<std::unique_ptr<LayerEncoder>(
      const Recipe& recipe, const GlmConfig& config, const GlmWeights& weights)>;
  // Measures the losses that decide how options.budget is spent.
  using MeasureLosses = std::function<std::vector<SiteLoss>(
      const Recipe& recipe, const GlmConfig& config, const GlmWeights& weights)>;

  QuantizeOptions options{};
  MakeEncoder make_encoder{};
  MeasureLosses measure_losses{};  // called first, where there is a budget
  std::function<void(const QuantizeProgress&)> on_progress{};

  QuantizeReport run(ThreadPool& pool);
  // What run() would take, with all of the budget spent; writes nothing. `tokens` calibrate; null
  // where the recipe does not. Throws the Errors that run() throws before it encodes.
  RunEstimate estimate(const CalibrationTokens* tokens, const Backend& backend, int threads);
};

// The encoder of recipe rtn.
std::unique_ptr<LayerEncoder> make_nearest_encoder(ThreadPool& pool);

}  // namespace nibble
