#include "compress/report.h"

namespace nibble {
namespace {

const char* precision_name(Precision precision) {
  switch (precision) {
    case Precision::kKept:
      return "kept";
    case Precision::kFp8:
      return "fp8";
    case Precision::kNvfp4:
      return "nvfp4";
  }
  return "";
}

Precision precision_of(const std::string& name) {
  if (name == "kept") return Precision::kKept;
  return name == "fp8" ? Precision::kFp8 : Precision::kNvfp4;
}

}  // namespace

nlohmann::ordered_json to_json(const LayerReport& report) {
  nlohmann::ordered_json json = {{"layer", report.layer}, {"stream_error", report.stream_error}};
  json["groups"] = nlohmann::ordered_json::array();
  for (const GroupReport& group : report.groups) {
    json["groups"].push_back({{"name", group.name},
                              {"precision", precision_name(group.precision)},
                              {"error", group.error},
                              {"tokens", group.tokens},
                              {"fell_back", group.fell_back}});
  }
  return json;
}

LayerReport layer_report_of(const nlohmann::json& json) {
  LayerReport report{.layer = json.at("layer").get<int>(),
                     .stream_error = json.at("stream_error").get<double>()};
  for (const auto& group : json.at("groups")) {
    report.groups.push_back({.name = group.at("name").get<std::string>(),
                             .precision = precision_of(group.at("precision").get<std::string>()),
                             .error = group.at("error").get<double>(),
                             .tokens = group.at("tokens").get<int64_t>(),
                             .fell_back = group.at("fell_back").get<bool>()});
  }
  return report;
}

nlohmann::ordered_json to_json(const QuantizeReport& report) {
  nlohmann::ordered_json json = {{"format", report.label},
                                 {"source_bytes", report.source_bytes},
                                 {"target_bytes", report.target_bytes}};
  json["layers"] = nlohmann::ordered_json::array();
  for (const LayerReport& layer : report.layers) json["layers"].push_back(to_json(layer));
  return json;
}

}  // namespace nibble
