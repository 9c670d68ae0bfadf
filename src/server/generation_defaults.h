// Sampling of requests that do not say: the checkpoint's, the operator's, vLLM's.
#pragma once

#include <filesystem>
#include <string>

#include "server/options.h"

namespace nibble {

// `source` (--generation-config): "auto", generation_config.json of `model_folder` if there is one;
// "vllm", none; else a folder or file. `overrides` (--override-generation-config): a JSON object
// whose keys win, or empty. Takes temperature, top_p, top_k, min_p, repetition_penalty and
// max_new_tokens; unknown keys of `overrides` are named in one warning. Throws Error that names
// file or flag, and the key.
GenerationDefaults load_generation_defaults(const std::filesystem::path& model_folder,
                                            const std::string& source,
                                            const std::string& overrides);

}  // namespace nibble
