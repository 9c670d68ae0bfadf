#include "server/json_body.h"

#include <array>
#include <cstdint>

#include "base/error.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

// An ordered object finds its keys by looking through them: n keys cost n^2 comparisons.
constexpr uint64_t kMaxKeyComparisons = 100'000'000;

struct Level {
  bool is_object = false;
  uint64_t commas = 0;
};

// What building the value would cost, found without building it; JSON it need not be.
void check_shape(std::string_view text, const std::string& name, const std::string& param) {
  std::array<Level, kMaxJsonDepth> levels;
  int depth = 0;
  uint64_t comparisons = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (depth == kMaxJsonDepth) {
        throw ApiError(
            400, name + " is nested deeper than " + std::to_string(kMaxJsonDepth) + " levels.",
            param);
      }
      levels[size_t(depth++)] = {.is_object = c == '{'};
    } else if ((c == '}' || c == ']') && depth > 0) {
      --depth;
    } else if (c == ',' && depth > 0) {
      Level& level = levels[size_t(depth - 1)];
      if (!level.is_object) continue;
      comparisons += ++level.commas;
      if (comparisons > kMaxKeyComparisons) {
        throw ApiError(400, name + " has objects with too many keys.", param);
      }
    }
  }
}

}  // namespace

Json parse_json(std::string_view text, const std::string& param) {
  const std::string name = param.empty() ? "The request body" : "`" + param + "`";
  check_shape(text, name, param);
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    // "[json.exception.parse_error.101] parse error at ...": the bracket is the library's affair.
    std::string_view what = error.what();
    const size_t bracket = what.find("] ");
    if (bracket != std::string_view::npos) what.remove_prefix(bracket + 2);
    throw ApiError(400, name + " is not valid JSON: " + std::string(what), param);
  }
}

Json parse_json_object(std::string_view text) {
  Json value = parse_json(text);
  if (!value.is_object()) {
    throw ApiError(
        400, std::string("The request body must be a JSON object, not ") + value.type_name() + ".");
  }
  return value;
}

}  // namespace nibble
