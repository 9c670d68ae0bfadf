// JsonWriter: JSON text, written front to back. Commas are put where they belong; that objects and
// arrays are closed, and keys have values, is the caller's affair.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

// Quoted and escaped; broken UTF-8 becomes U+FFFD.
void append_json_string(std::string_view text, std::string& out);

class JsonWriter {
 public:
  JsonWriter& begin_object() { return open('{'); }
  JsonWriter& end_object() { return close('}'); }
  JsonWriter& begin_array() { return open('['); }
  JsonWriter& end_array() { return close(']'); }

  JsonWriter& key(std::string_view name);       // a plain name: not escaped
  JsonWriter& text_key(std::string_view text);  // any text
  JsonWriter& string(std::string_view text);
  JsonWriter& integer(int64_t value);
  JsonWriter& number(double value);  // finite
  JsonWriter& number(float value);   // finite; the shortest text that reads back the same
  JsonWriter& boolean(bool value) { return raw(value ? "true" : "false"); }
  JsonWriter& null() { return raw("null"); }
  JsonWriter& raw(std::string_view json);  // a whole value

  // The text so far, taken away.
  std::string take();

 private:
  JsonWriter& open(char bracket);
  JsonWriter& close(char bracket);
  void separate();

  std::string text_;
  bool needs_comma_ = false;
};

}  // namespace nibble
