// StopStrings: finds the first of several strings in streamed text, holding back what could still
// become one. First is the match that completes first; of several that complete with the same byte,
// the longest. How the text is cut into pieces makes no difference; time is linear in the text.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

class StopStrings {
 public:
  // Empty strings never match. `include`: a matched string stays at the end of the text
  // (include_stop_str_in_output).
  StopStrings(std::vector<std::string> strings, bool include);

  // The text that is certainly before any match. After a match everything is dropped.
  std::string push(std::string_view piece);
  // What was held back, when the text ends without a match.
  std::string flush();
  // The string that matched.
  const std::optional<std::string>& matched() const { return matched_; }

 private:
  // One string and how much of it the text ends with (Knuth, Morris and Pratt's automaton).
  struct Matcher {
    explicit Matcher(std::string pattern);
    // Takes the next byte; true: the string is complete.
    bool advance(char byte);

    std::string pattern;
    std::vector<size_t> borders;  // [i]: of pattern[0..i], the longest proper prefix that ends it
    size_t length = 0;
  };

  // The undecided end of the text: the longest beginning of a string that it ends with.
  std::string_view held() const;
  void drop_held();

  std::vector<Matcher> matchers_{};
  bool include_;
  std::optional<std::string> matched_{};
};

}  // namespace nibble
