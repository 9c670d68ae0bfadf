// What a quantization did to each group of linears and to each layer's output.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/json_file.h"
#include "compress/encoded.h"

namespace nibble {

struct GroupReport {
  std::string name{};
  Precision precision = Precision::kNvfp4;
  // |change| / |value|: of the outputs over the calibration tokens, each with its weight in
  // Moments, or of the weights where there are none.
  double error = 0;
  int64_t tokens = -1;     // that calibrated it; -1: none were looked at
  bool fell_back = false;  // too few tokens: treated as without calibration
};

struct LayerReport {
  int layer = 0;
  double stream_error = -1;  // |x_quantized - x| / |x| of the residual stream after it; -1: unknown
  std::vector<GroupReport> groups{};
};

struct QuantizeReport {
  std::string label{};  // "NVFP4"
  std::vector<LayerReport> layers{};
  int64_t source_bytes = 0;
  int64_t target_bytes = 0;
};

nlohmann::ordered_json to_json(const LayerReport& report);
// Throws nlohmann's exceptions on another structure.
LayerReport layer_report_of(const nlohmann::json& json);
nlohmann::ordered_json to_json(const QuantizeReport& report);

}  // namespace nibble
