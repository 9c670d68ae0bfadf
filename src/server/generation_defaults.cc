#include "server/generation_defaults.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string_view>

#include "base/error.h"
#include "base/log.h"
#include "server/fields.h"
#include "server/json_body.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kFileName = "generation_config.json";
constexpr std::string_view kOverrideFlag = "--override-generation-config";
constexpr std::array<std::string_view, 6> kKeys = {
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens"};

// Where the checkpoint's defaults are; none when there are none.
std::optional<std::filesystem::path> find_file(const std::filesystem::path& model_folder,
                                               const std::string& source) {
  if (source == "vllm") return std::nullopt;
  if (source == "auto") {
    const std::filesystem::path path = model_folder / kFileName;
    return std::filesystem::exists(path) ? std::optional(path) : std::nullopt;
  }
  const std::filesystem::path path = std::filesystem::is_directory(source)
                                         ? std::filesystem::path(source) / kFileName
                                         : std::filesystem::path(source);
  if (!std::filesystem::is_regular_file(path)) {
    throw Error(path.string() +
                ": no such file (--generation-config is auto, vllm, a folder or a "
                "file)");
  }
  return path;
}

Json parse_object(const std::string& name, const std::string& text) {
  try {
    return parse_json_object(text);
  } catch (const ApiError& error) {
    throw Error(name + ": " + error.what());
  }
}

void apply(const std::string& name, const Json& object, GenerationDefaults& defaults) {
  const Fields fields(object);
  const auto set = [&](const char* key, NumberRange range, float& value) {
    if (const auto number = fields.number(key, range)) value = float(*number);
  };
  try {
    set("temperature", {.min = 0, .max = 1e6}, defaults.temperature);
    set("top_p", {.min = 0, .max = 1, .above_min = true}, defaults.top_p);
    set("min_p", {.min = 0, .max = 1}, defaults.min_p);
    set("repetition_penalty", {.min = 0.01, .max = 100}, defaults.repetition_penalty);
    if (const auto top_k = fields.integer("top_k", -1, INT32_MAX)) defaults.top_k = int(*top_k);
    if (const auto limit = fields.integer("max_new_tokens", 1, INT32_MAX)) {
      defaults.max_new_tokens = int(*limit);
    }
  } catch (const ApiError& error) {
    throw Error(name + ": " + error.what());
  }
}

void warn_of_unknown_keys(const Json& overrides) {
  std::string unknown;
  for (const auto& [key, value] : overrides.items()) {
    if (std::find(kKeys.begin(), kKeys.end(), key) != kKeys.end()) continue;
    unknown += (unknown.empty() ? "" : ", ") + key;
  }
  if (!unknown.empty()) log_warning(std::string(kOverrideFlag) + ": ignored " + unknown);
}

}  // namespace

GenerationDefaults load_generation_defaults(const std::filesystem::path& model_folder,
                                            const std::string& source,
                                            const std::string& overrides) {
  GenerationDefaults defaults;
  if (const auto path = find_file(model_folder, source)) {
    std::ostringstream text;
    text << std::ifstream(*path).rdbuf();
    apply(path->string(), parse_object(path->string(), text.str()), defaults);
  }
  if (!overrides.empty()) {
    const Json object = parse_object(std::string(kOverrideFlag), overrides);
    warn_of_unknown_keys(object);
    apply(std::string(kOverrideFlag), object, defaults);
  }
  return defaults;
}

}  // namespace nibble
