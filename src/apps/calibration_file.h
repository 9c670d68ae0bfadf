// Calibration text: conversations from a .jsonl file as token ids.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace nibble {

struct CalibrationFile {
  std::string path{};  // empty: calibration.jsonl beside the pocket model
  int samples = 512;   // the first ones
  int max_length = 2048;
  bool strict = false;
};

// A line is {"messages": [...], "tools": [...]?}: the ids of the chat template of the model in
// `folder`, cut to max_length. Lines that cannot be used are left out with a warning that names
// them, or with `strict` refused. Throws Error: no such file, no usable line, no chat template.
std::vector<std::vector<int32_t>> load_calibration(const std::filesystem::path& folder,
                                                   const CalibrationFile& file);

}  // namespace nibble
