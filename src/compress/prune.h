// Pruning: a checkpoint with fewer routed experts, those that matter least left out.
#pragma once

#include <functional>
#include <vector>

#include "compress/options.h"
#include "compress/run_estimate.h"
#include "compress/saliency.h"

namespace nibble {

struct PrunedLayer {
  int layer = 0;
  std::vector<int> kept{};         // experts, by their old numbers
  std::vector<double> saliency{};  // of all
};

struct PruneProgress {
  int layer = 0;  // the one at work
  int num_layers = 0;
};

// Kept experts are numbered anew in their old order; rows of the router and its correction bias go
// with them, all else is copied. Announced MTP layers are left out: their experts cannot be
// calibrated. Throws Error that names the file or flag at fault; then nothing stands at the target.
class PruneJob {
 public:
  PruneOptions options{};
  // Called once, with the model's own weights.
  std::function<LayerRunner&(const GlmConfig& config, const GlmWeights& weights)> make_runner{};
  std::function<void(const PruneProgress&)> on_progress{};

  std::vector<PrunedLayer> run(ThreadPool& pool);
  // What run() would take; writes nothing. Throws the Errors that run() throws before it works.
  RunEstimate estimate(const CalibrationTokens& tokens, const Backend& backend, ThreadPool& pool);
};

}  // namespace nibble
