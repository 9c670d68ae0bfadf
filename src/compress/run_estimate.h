// RunEstimate: what a quantization or a pruning on the CPU will take of the machine, from shapes
// and the number of calibration tokens alone.
#pragma once

#include <string>
#include <vector>

#include "backend/backend.h"
#include "checkpoint/checkpoint_writer.h"
#include "compress/calibration_tokens.h"
#include "compress/recipe.h"

namespace nibble {

struct RunEstimate {
  int64_t memory_bytes = 0;   // the most of anonymous memory, beyond what is held already
  std::string peak{};         // when that is: "layers.0.mlp.down"
  int64_t spill_bytes = 0;    // of temporary files
  int64_t target_bytes = 0;   // of the result
  int64_t written_bytes = 0;  // to both, in all
};

// `tokens`: null for a recipe that does not calibrate. `backend`: will run the layers. `threads`:
// will encode. `target`: the tensors that will be written.
RunEstimate estimate_quantization(const Recipe& recipe, const GlmConfig& config,
                                  const CalibrationTokens* tokens, const Backend& backend,
                                  int threads, bool spills, const std::vector<TensorPlan>& target);

RunEstimate estimate_pruning(const GlmConfig& config, const CalibrationTokens& tokens,
                             const Backend& backend, bool spills,
                             const std::vector<TensorPlan>& target);

}  // namespace nibble
