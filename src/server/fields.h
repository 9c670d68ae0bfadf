// Fields: typed reads from a client's JSON object. null counts as absent. A wrong type or a value
// out of range is ApiError 400 with the field's dotted path as `param`.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

struct NumberRange {
  double min = 0;
  double max = 0;
  bool above_min = false;  // min itself is out
};

class Fields {
 public:
  // `object` must be one, and outlive this. `path`: where it stands in the body; empty for the
  // body.
  explicit Fields(const nlohmann::ordered_json& object, std::string path = "")
      : object_(object), path_(std::move(path)) {}

  // nullptr: absent or null.
  const nlohmann::ordered_json* find(std::string_view name) const;
  bool has(std::string_view name) const { return find(name) != nullptr; }
  std::string path(std::string_view name) const;

  std::optional<bool> boolean(std::string_view name) const;
  std::optional<int64_t> integer(std::string_view name, int64_t min, int64_t max) const;
  std::optional<double> number(std::string_view name, NumberRange range) const;
  std::optional<std::string> string(std::string_view name, size_t max_bytes) const;
  const nlohmann::ordered_json* object(std::string_view name) const;
  const nlohmann::ordered_json* array(std::string_view name, size_t max_items) const;

  // "`name` must be ..., not ...".
  [[noreturn]] void fail_type(std::string_view name, std::string_view must_be) const;
  [[noreturn]] void fail(std::string_view name, const std::string& message) const;

 private:
  const nlohmann::ordered_json& object_;
  std::string path_;
};

// `value` as an integer of that range, if it is one (16.0 is).
std::optional<int64_t> as_integer(const nlohmann::ordered_json& value, int64_t min, int64_t max);

}  // namespace nibble
