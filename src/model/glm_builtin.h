// Configurations that come with the program, so that full-size models can be measured and planned
// without their files.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/glm_config.h"

namespace nibble {

// "glm-4.7-flash" (64 experts) or "glm-4.7-flash-reap-23b" (48): config.json of zai-org's and
// cerebras' checkpoints, without their announced MTP layer. Nothing for another name.
std::optional<GlmConfig> builtin_config(const std::string& name);

std::vector<std::string> builtin_config_names();

}  // namespace nibble
