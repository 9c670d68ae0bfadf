// Calibration text: conversations from a .jsonl file as token ids.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "apps/options.h"

namespace nibble {

// A line is {"messages": [...], "tools": [...]?}: the ids of the chat template of the model in
// `folder`, cut to max_length. Lines that cannot be used are left out with a warning that names
// them, or with `strict` refused. Throws Error: no such file, no usable line, no chat template.
std::vector<std::vector<int32_t>> load_calibration(const std::filesystem::path& folder,
                                                   const CalibrationFlags& flags);

}  // namespace nibble
