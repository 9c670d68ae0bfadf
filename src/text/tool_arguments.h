// The value of a tool call's argument: GLM writes it as bare text, the function's JSON schema says
// what it means.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace nibble {

// The types that a schema allows.
struct ArgumentTypes {
  bool null = false;
  bool integer = false;
  bool number = false;
  bool boolean = false;
  bool object = false;
  bool array = false;
  bool string = false;

  // True when the text itself is the value, whatever it says.
  bool only_string() const {
    return string && !(null || integer || number || boolean || object || array);
  }
};

// The definition of `function` among OpenAI's tool definitions, or null.
const nlohmann::ordered_json* find_function(const nlohmann::ordered_json& tools,
                                            std::string_view function);

// The types of the argument `key`, by type, enum, const, anyOf, oneOf, allOf and local $ref. A
// function, key or type that nobody defined: string.
ArgumentTypes argument_types(const nlohmann::ordered_json& tools, std::string_view function,
                             std::string_view key);

// Values nested deeper than this stay text.
inline constexpr int kMaxArgumentDepth = 128;

// `text` as JSON: the first that fits of null, integer, number, boolean, object, array; else a
// string. Integers keep all their digits, objects and arrays are passed on as written; numbers
// beyond a double's range stay text.
std::string argument_json(std::string_view text, const ArgumentTypes& types);

// Appends `text` to `out` as the inside of a JSON string. Byte by byte: parts may be escaped apart.
void append_json_escaped(std::string_view text, std::string& out);
std::string json_string(std::string_view text);

}  // namespace nibble
