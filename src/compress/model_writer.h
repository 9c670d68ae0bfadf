// Writes a model as it is in memory: its weights are not touched, whatever made them.
#pragma once

#include <filesystem>
#include <functional>

#include "model/glm_weights.h"

namespace nibble {

struct WrittenShare {
  int64_t done_bytes = 0;
  int64_t total_bytes = 0;
};

// Makes the folder `target`, which every engine reads like any other checkpoint: config.json with
// quantization_config, hf_quant_config.json, weights in ModelOpt's layout, and from the folder
// `texts` tokenizer, template and sampling defaults (the stop ids are the config's). Weights are
// those before upload(), linears in BF16 or NVFP4. Memory: nothing beside the weights.
//
// Throws Error that names the folder or file: it is there, or no room; then nothing is left of it.
void write_model(const GlmConfig& config, const GlmWeights& weights,
                 const std::filesystem::path& texts, const std::filesystem::path& target,
                 const std::function<void(WrittenShare)>& progress = {});

}  // namespace nibble
