#include "server/fields.h"

#include <charconv>
#include <cmath>

#include "base/error.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

std::string number_text(double value) {
  char digits[32];
  const auto [end, error] = std::to_chars(digits, digits + sizeof(digits), value);
  return {digits, end};
}

std::string describe(const Json& value) {
  if (value.is_number()) return value.dump();
  return std::string(value.is_array() || value.is_object() ? "an " : "a ") + value.type_name();
}

}  // namespace

std::optional<int64_t> as_integer(const Json& value, int64_t min, int64_t max) {
  if (value.is_number_unsigned()) {
    const uint64_t n = value.get<uint64_t>();
    if (n > uint64_t(INT64_MAX) || int64_t(n) < min || int64_t(n) > max) return std::nullopt;
    return int64_t(n);
  }
  if (value.is_number_integer()) {
    const int64_t n = value.get<int64_t>();
    if (n < min || n > max) return std::nullopt;
    return n;
  }
  if (value.is_number_float()) {
    const double d = value.get<double>();
    if (!(std::fabs(d) < 0x1p53) || d != std::floor(d)) return std::nullopt;
    return as_integer(Json(int64_t(d)), min, max);
  }
  return std::nullopt;
}

const Json* Fields::find(std::string_view name) const {
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::string Fields::path(std::string_view name) const {
  return path_.empty() ? std::string(name) : path_ + "." + std::string(name);
}

void Fields::fail(std::string_view name, const std::string& message) const {
  throw ApiError(400, message, path(name));
}

void Fields::fail_type(std::string_view name, std::string_view must_be) const {
  const Json* value = find(name);
  fail(name, "`" + path(name) + "` must be " + std::string(must_be) +
                 (value ? ", not " + describe(*value) : "") + ".");
}

std::optional<bool> Fields::boolean(std::string_view name) const {
  const Json* value = find(name);
  if (!value) return std::nullopt;
  if (!value->is_boolean()) fail_type(name, "true or false");
  return value->get<bool>();
}

std::optional<int64_t> Fields::integer(std::string_view name, int64_t min, int64_t max) const {
  const Json* value = find(name);
  if (!value) return std::nullopt;
  const std::optional<int64_t> result = as_integer(*value, min, max);
  if (!result) {
    fail_type(name, max == INT64_MAX
                        ? "an integer of at least " + std::to_string(min)
                        : "an integer from " + std::to_string(min) + " to " + std::to_string(max));
  }
  return result;
}

std::optional<double> Fields::number(std::string_view name, NumberRange range) const {
  const Json* value = find(name);
  if (!value) return std::nullopt;
  const double number = value->is_number() ? value->get<double>() : NAN;
  const bool fits =
      number <= range.max && (range.above_min ? number > range.min : number >= range.min);
  if (!fits) {
    fail_type(name, "a number " + std::string(range.above_min ? "above " : "from ") +
                        number_text(range.min) + (range.above_min ? " and up to " : " to ") +
                        number_text(range.max));
  }
  return number;
}

std::optional<std::string> Fields::string(std::string_view name, size_t max_bytes) const {
  const Json* value = find(name);
  if (!value) return std::nullopt;
  if (!value->is_string()) fail_type(name, "a string");
  const auto& text = value->get_ref<const std::string&>();
  if (text.size() > max_bytes) {
    fail(name, "`" + path(name) + "` is longer than " + std::to_string(max_bytes) + " bytes.");
  }
  return text;
}

const Json* Fields::object(std::string_view name) const {
  const Json* value = find(name);
  if (value && !value->is_object()) fail_type(name, "an object");
  return value;
}

const Json* Fields::array(std::string_view name, size_t max_items) const {
  const Json* value = find(name);
  if (!value) return nullptr;
  if (!value->is_array()) fail_type(name, "an array");
  if (value->size() > max_items) {
    fail(name, "`" + path(name) + "` has more than " + std::to_string(max_items) + " items.");
  }
  return value;
}

}  // namespace nibble
