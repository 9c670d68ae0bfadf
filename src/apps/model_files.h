// Finding models: the pocket model beside the program, or a folder that the user names.
#pragma once

#include <filesystem>
#include <string>

#include "apps/options.h"
#include "model/glm_config.h"

namespace nibble {

// The folder of `model`; empty or "pocket" is the pocket model: ../models/pocket beside the program
// in a build tree, ../share/nibble/models/pocket where it is installed. Throws Error that says what
// was looked for, and what a folder must contain. The name of a built-in configuration gives the
// pocket model's folder, whose tokenizer and template such a model uses.
std::filesystem::path find_model(const std::string& model);

// The configuration of `options.model`, which lies in `folder`. Throws Error that names the flag
// when --load-format, --num-hidden-layers or --save do not fit the model.
GlmConfig config_of(const ModelOptions& options, const std::filesystem::path& folder);

// What the server calls the model unless told otherwise: the name as the user gave it, "pocket" for
// the pocket model.
std::string model_name(const std::string& model);

}  // namespace nibble
