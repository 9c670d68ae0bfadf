// How quantized linears stand in a checkpoint: ModelOpt's layout, or compressed-tensors'.
//
//   ModelOpt   X.weight U8 [N, K/2], X.weight_scale E4M3 [N, K/16], X.weight_scale_2 F32 scalar;
//              X.input_scale F32 (largest input / 2688), X.pre_quant_scale BF16 [K] where there
//              are; FP8: X.weight E4M3 [N, K], X.weight_scale F32, X.input_scale (largest input /
//              448)
//   compressed-tensors   X.weight_packed, X.weight_scale as above, X.weight_global_scale and
//              X.input_global_scale F32 [1]: the reciprocals of the tensor scales
#pragma once

#include <string>
#include <vector>

#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/json_file.h"
#include "compress/recipe.h"

namespace nibble {

// The tensors of the group's linears; for a kept one its weight as `source` has it (BF16 or F32).
std::vector<TensorPlan> plan_tensors(const Recipe& recipe, const PlannedGroup& planned);

// The scale that takes the place of `scale`: compressed-tensors holds its reciprocal, and readers
// divide by that or multiply by its own reciprocal. The nearest scale that both read, and that
// makes the same values either way; it is off by less than 0.02 %. Throws Error that names the
// linear: no reciprocal.
float stored_tensor_scale(const Recipe& recipe, const PlannedGroup& planned, float scale);

// Writes them. `encoded` must have what `planned` announces, its tensor scale be a stored one.
void write_encoded(const Recipe& recipe, const PlannedGroup& planned, const Encoded& encoded,
                   CheckpointWriter& writer);
// The same for a group whose weight has that format already: a kept one, or NVFP4 parts.
void write_stored(const Recipe& recipe, const PlannedGroup& planned, CheckpointWriter& writer);
// Scales of 1 where nothing was written yet: zeros have no reciprocal, and what is there is read by
// a run that resumes.
void write_unit_scales(const Recipe& recipe, const PlannedGroup& planned, CheckpointWriter& writer);

// config.json's quantization_config.
nlohmann::ordered_json quantization_config(const Recipe& recipe, const GlmConfig& config);
// hf_quant_config.json (ModelOpt's layout only).
nlohmann::ordered_json hf_quant_config(const Recipe& recipe, const GlmConfig& config);

}  // namespace nibble
