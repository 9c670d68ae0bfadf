// StopStrings: finds the first of several strings in streamed text, holding back what could still
// become one.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

class StopStrings {
 public:
  // `include`: a matched string stays at the end of the text (include_stop_str_in_output).
  StopStrings(std::vector<std::string> strings, bool include);

  // The text that is certainly before any match. After a match everything is dropped.
  std::string push(std::string_view piece);
  // What was held back, when the text ends without a match.
  std::string flush();
  // The string that matched.
  const std::optional<std::string>& matched() const { return matched_; }

 private:
  std::vector<std::string> strings_;
  bool include_;
  std::string held_;
  std::optional<std::string> matched_;
};

}  // namespace nibble
