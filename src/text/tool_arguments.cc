#include "text/tool_arguments.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <set>
#include <vector>

#include "text/blanks.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

const Json* member(const Json* object, std::string_view key) {
  if (object == nullptr || !object->is_object()) return nullptr;
  const auto found = object->find(std::string(key));
  return found == object->end() ? nullptr : &*found;
}

// What "#/a/b" points to, or null.
const Json* resolve(const Json& root, const std::string& reference) {
  if (!reference.starts_with('#')) return nullptr;
  try {
    return &root.at(Json::json_pointer(reference.substr(1)));
  } catch (const Json::exception&) {
    return nullptr;
  }
}

void add_type_name(const Json& name, ArgumentTypes& types) {
  if (!name.is_string()) return;
  const auto& type = name.get_ref<const std::string&>();
  if (type == "null") types.null = true;
  if (type == "integer") types.integer = true;
  if (type == "number") types.number = true;
  if (type == "boolean") types.boolean = true;
  if (type == "object") types.object = true;
  if (type == "array") types.array = true;
  if (type == "string") types.string = true;
}

void add_type_of(const Json& value, ArgumentTypes& types) {
  switch (value.type()) {
    case Json::value_t::null:
      types.null = true;
      break;
    case Json::value_t::boolean:
      types.boolean = true;
      break;
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
      types.integer = true;
      break;
    case Json::value_t::number_float:
      types.number = true;
      break;
    case Json::value_t::object:
      types.object = true;
      break;
    case Json::value_t::array:
      types.array = true;
      break;
    default:
      types.string = true;
  }
}

// Adds what the schema says itself; schemas that it refers to are put on `pending`.
void add_types(const Json& schema, const Json& root, ArgumentTypes& types,
               std::vector<const Json*>& pending) {
  if (!schema.is_object()) return;
  if (const Json* reference = member(&schema, "$ref"); reference && reference->is_string()) {
    const Json* target = resolve(root, reference->get_ref<const std::string&>());
    if (target != nullptr) pending.push_back(target);
    return;
  }
  if (const Json* type = member(&schema, "type"); type && type->is_array()) {
    for (const Json& name : *type) add_type_name(name, types);
  } else if (type) {
    add_type_name(*type, types);
  }
  if (const Json* values = member(&schema, "enum"); values && values->is_array()) {
    for (const Json& value : *values) add_type_of(value, types);
  } else if (const Json* value = member(&schema, "const")) {
    add_type_of(*value, types);
  }
  for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
    const Json* schemas = member(&schema, keyword);
    if (schemas == nullptr || !schemas->is_array()) continue;
    for (const Json& alternative : *schemas) pending.push_back(&alternative);
  }
}

bool equals_ignoring_case(std::string_view text, std::string_view lower) {
  return std::equal(text.begin(), text.end(), lower.begin(), lower.end(),
                    [](char a, char b) { return (a >= 'A' && a <= 'Z' ? char(a + 32) : a) == b; });
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

std::string_view digits_of(std::string_view text) {
  const auto end = std::find_if_not(text.begin(), text.end(), is_digit);
  return text.substr(0, size_t(end - text.begin()));
}

// The parts of [+-]?(digits.?digits?|.digits)([eE][+-]?digits)?; the exponent may be absent.
struct Numeral {
  bool negative = false;
  bool integral = false;  // neither point nor exponent
  std::string_view whole{};
  std::string_view unsigned_text{};
};

std::optional<Numeral> parse_numeral(std::string_view text) {
  Numeral numeral;
  if (text.starts_with('+') || text.starts_with('-')) {
    numeral.negative = text.front() == '-';
    text.remove_prefix(1);
  }
  numeral.unsigned_text = text;
  numeral.whole = digits_of(text);
  text.remove_prefix(numeral.whole.size());
  numeral.integral = text.empty();
  size_t fraction_digits = 0;
  if (text.starts_with('.')) {
    fraction_digits = digits_of(text.substr(1)).size();
    text.remove_prefix(1 + fraction_digits);
  }
  if (numeral.whole.empty() && fraction_digits == 0) return std::nullopt;
  if (text.starts_with('e') || text.starts_with('E')) {
    text.remove_prefix(1);
    if (text.starts_with('+') || text.starts_with('-')) text.remove_prefix(1);
    const size_t exponent_digits = digits_of(text).size();
    if (exponent_digits == 0) return std::nullopt;
    text.remove_prefix(exponent_digits);
  }
  return text.empty() ? std::optional(numeral) : std::nullopt;
}

// A number's JSON text, if `text` is one that the types allow.
std::optional<std::string> number_json(std::string_view text, const ArgumentTypes& types) {
  const std::optional<Numeral> numeral = parse_numeral(text);
  if (!numeral) return std::nullopt;
  double value = 0;
  const std::string_view number = numeral->unsigned_text;
  const auto parsed = std::from_chars(number.data(), number.data() + number.size(), value);
  if (parsed.ec != std::errc()) return std::nullopt;  // a reader of the JSON could not hold it
  const std::string sign = numeral->negative ? "-" : "";
  if (numeral->integral) {
    const size_t zeros = std::min(numeral->whole.find_first_not_of('0'), numeral->whole.size());
    const std::string_view digits = numeral->whole.substr(zeros);
    return digits.empty() ? "0" : sign + std::string(digits);
  }
  constexpr double kExactLimit = 1e15;  // below, whole doubles are written as integers
  const bool whole = value == std::floor(value);
  if (!whole && !types.number) return std::nullopt;
  if (value == 0) return "0";
  return sign +
         (whole && value < kExactLimit ? std::to_string(int64_t(value)) : Json(value).dump());
}

// Follows a JSON text without building it: its outermost kind and whether it nests too deeply.
class ShapeReader : public nlohmann::json_sax<Json> {
 public:
  bool is_object = false;
  bool is_array = false;

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool key(string_t&) override { return true; }
  bool start_object(size_t) override {
    is_object |= depth_ == 0;
    return ++depth_ <= kMaxArgumentDepth;
  }
  bool start_array(size_t) override {
    is_array |= depth_ == 0;
    return ++depth_ <= kMaxArgumentDepth;
  }
  bool end_object() override { return --depth_ >= 0; }
  bool end_array() override { return --depth_ >= 0; }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }

 private:
  int depth_ = 0;
};

bool is_container(std::string_view text, const ArgumentTypes& types) {
  if (!text.starts_with('{') && !text.starts_with('[')) return false;
  ShapeReader shape;
  if (!Json::sax_parse(text, &shape)) return false;
  return (types.object && shape.is_object) || (types.array && shape.is_array);
}

}  // namespace

const Json* find_function(const Json& tools, std::string_view function) {
  if (!tools.is_array()) return nullptr;
  for (const Json& tool : tools) {
    const Json* definition = member(&tool, "function");
    const Json* name = member(definition, "name");
    if (name && name->is_string() && name->get_ref<const std::string&>() == function) {
      return definition;
    }
  }
  return nullptr;
}

ArgumentTypes argument_types(const Json& tools, std::string_view function, std::string_view key) {
  ArgumentTypes types;
  const Json* root = member(find_function(tools, function), "parameters");
  const Json* schema = member(member(root, "properties"), key);
  std::vector<const Json*> pending;
  if (schema != nullptr) pending.push_back(schema);
  std::set<const Json*> seen;  // references may form circles
  while (!pending.empty()) {
    const Json* next = pending.back();
    pending.pop_back();
    if (seen.insert(next).second) add_types(*next, *root, types, pending);
  }
  const bool any =
      types.null || types.integer || types.number || types.boolean || types.object || types.array;
  types.string |= !any;
  return types;
}

std::string argument_json(std::string_view text, const ArgumentTypes& types) {
  const std::string_view value = without_outer_blanks(text);
  if (types.null && equals_ignoring_case(value, "null")) return "null";
  if (types.integer || types.number) {
    if (std::optional<std::string> number = number_json(value, types)) return *number;
  }
  if (types.boolean) {
    if (value == "1" || equals_ignoring_case(value, "true")) return "true";
    if (value == "0" || equals_ignoring_case(value, "false")) return "false";
  }
  if ((types.object || types.array) && is_container(value, types)) return std::string(value);
  return json_string(text);
}

void append_json_escaped(std::string_view text, std::string& out) {
  constexpr char kHex[] = "0123456789abcdef";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += {'\\', 'u', '0', '0', kHex[c >> 4], kHex[c & 15]};
        } else {
          out += c;
        }
    }
  }
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  append_json_escaped(text, out);
  out += '"';
  return out;
}

}  // namespace nibble
