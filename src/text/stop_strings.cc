#include "text/stop_strings.h"

#include <algorithm>
#include <utility>

namespace nibble {

StopStrings::Matcher::Matcher(std::string text) : pattern(std::move(text)) {
  borders.assign(pattern.size(), 0);
  size_t border = 0;
  for (size_t i = 1; i < pattern.size(); ++i) {
    while (border > 0 && pattern[border] != pattern[i]) border = borders[border - 1];
    if (pattern[border] == pattern[i]) ++border;
    borders[i] = border;
  }
}

bool StopStrings::Matcher::advance(char byte) {
  while (length > 0 && pattern[length] != byte) length = borders[length - 1];
  if (pattern[length] == byte) ++length;
  return length == pattern.size();
}

StopStrings::StopStrings(std::vector<std::string> strings, bool include) : include_(include) {
  for (std::string& string : strings) {
    if (!string.empty()) matchers_.emplace_back(std::move(string));
  }
  // The longest string is asked first, so that it wins.
  std::sort(matchers_.begin(), matchers_.end(),
            [](const Matcher& a, const Matcher& b) { return a.pattern.size() > b.pattern.size(); });
}

std::string StopStrings::push(std::string_view piece) {
  if (matched_) return "";
  const std::string_view before = held();  // a part of a pattern: stays as it is
  const auto first_bytes = [&](size_t size) {
    std::string text(before.substr(0, size));
    text += piece.substr(0, size - text.size());
    return text;
  };
  for (size_t i = 0; i < piece.size(); ++i) {
    for (Matcher& matcher : matchers_) {
      if (matcher.advance(piece[i]) && !matched_) matched_ = matcher.pattern;
    }
    if (!matched_) continue;
    drop_held();
    const size_t end = before.size() + i + 1;
    return first_bytes(include_ ? end : end - matched_->size());
  }
  return first_bytes(before.size() + piece.size() - held().size());
}

std::string StopStrings::flush() {
  std::string text(held());
  drop_held();
  return text;
}

std::string_view StopStrings::held() const {
  std::string_view longest;
  for (const Matcher& matcher : matchers_) {
    if (matcher.length > longest.size()) {
      longest = std::string_view(matcher.pattern).substr(0, matcher.length);
    }
  }
  return longest;
}

void StopStrings::drop_held() {
  for (Matcher& matcher : matchers_) matcher.length = 0;
}

}  // namespace nibble
