// White space as markup sees it: ASCII only, so that a blank is never part of a longer character.
#pragma once

#include <string_view>

namespace nibble {

inline constexpr std::string_view kBlanks = " \t\n\r\v\f";

inline bool is_blank(char c) {
  return kBlanks.find(c) != std::string_view::npos;
}

inline std::string_view without_leading_blanks(std::string_view text) {
  const size_t begin = text.find_first_not_of(kBlanks);
  return begin == std::string_view::npos ? std::string_view() : text.substr(begin);
}

inline std::string_view without_trailing_blanks(std::string_view text) {
  return text.substr(0, text.find_last_not_of(kBlanks) + 1);  // npos + 1 == 0
}

inline std::string_view without_outer_blanks(std::string_view text) {
  return without_trailing_blanks(without_leading_blanks(text));
}

}  // namespace nibble
