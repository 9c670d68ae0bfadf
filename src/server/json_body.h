// A client's JSON, within limits.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace nibble {

inline constexpr int kMaxJsonDepth = 128;

// Throws ApiError 400: not JSON, invalid UTF-8, nested too deep, objects with too many keys. Of
// equal keys the last counts.
nlohmann::ordered_json parse_json(std::string_view text, const std::string& param = "");
// The same, and it must be an object.
nlohmann::ordered_json parse_json_object(std::string_view text);

}  // namespace nibble
