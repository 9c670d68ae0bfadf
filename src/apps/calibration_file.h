// Calibration text: conversations from a .jsonl file as token ids.
#pragma once

#include <filesystem>
#include <vector>

#include "apps/options.h"
#include "compress/calibration_tokens.h"

namespace nibble {

// A line is {"messages": [...], "tools": [...]?}: the ids of the chat template of the model in
// `folder`, cut to max_length. Lines that cannot be used are left out with a warning that names
// them, or with `strict` refused. Replies are what stands behind <|assistant|>, to the token that
// ends the turn. Throws Error: no such file, no usable line, no chat template.
std::vector<CalibrationSample> load_calibration(const std::filesystem::path& folder,
                                                const CalibrationFlags& flags);

}  // namespace nibble
