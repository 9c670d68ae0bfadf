// The linears of a model, in the groups that are quantized as one matrix: those of a group read the
// same input and share one tensor scale, because engines fuse them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/glm_weights.h"

namespace nibble {

enum class Site : uint8_t {  // in the order in which a layer computes them
  kQkvA,                     // q_a_proj, kv_a_proj_with_mqa
  kQB,
  kKvB,
  kO,
  kGateUp,  // gate_proj, up_proj: a dense layer's, or the shared expert's
  kExpertsGateUp,
  kExpertsDown,
  kDown,
};

struct Linear {
  std::string name{};  // as in the checkpoint, without ".weight"
  int64_t rows = 0;
};

struct LinearGroup {
  Site site = Site::kQkvA;
  int layer = 0;
  int expert = -1;        // of kExpertsGateUp and kExpertsDown
  int64_t first_row = 0;  // of the weight's stack
  int64_t rows = 0;       // of all linears together
  int64_t cols = 0;
  std::vector<Linear> linears{};

  // "layers.3.mlp.experts.5.gate_up", for people.
  std::string name() const;
};

std::vector<LinearGroup> linear_groups(const GlmConfig& config, int layer);

Weight& weight_at(GlmLayer& layer, Site site);
const Weight& weight_at(const GlmLayer& layer, Site site);

// The group's rows as `rows` x `cols` floats: those from `first` on, `count` of them.
void decode_rows(const Weight& weight, const LinearGroup& group, int64_t first, int64_t count,
                 float* out);

// Whether `name` has the form of `pattern`, in which * stands for any text and ? for a character.
bool matches_pattern(const std::string& name, const std::string& pattern);

}  // namespace nibble
