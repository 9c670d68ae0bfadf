#include "base/utf8.h"

namespace nibble {
namespace {

struct Sequence {
  size_t length = 0;       // bytes of the maximal valid part
  bool complete = false;   // a whole character
  bool truncated = false;  // valid so far, cut off by the end of the text
};

// The sequence that starts at text[0]; text is not empty.
Sequence next_sequence(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {1, true, false};
  size_t length = 0;
  unsigned char low = 0x80, high = 0xBF;  // bounds of the second byte
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {1, false, false};
  }
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {i, false, true};
    if (byte(i) < low || byte(i) > high) return {i, false, false};
    low = 0x80;
    high = 0xBF;
  }
  return {length, true, false};
}

}  // namespace

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    const Sequence sequence = next_sequence(text);
    if (!sequence.complete) return false;
    text.remove_prefix(sequence.length);
  }
  return true;
}

size_t append_valid_utf8(std::string_view text, bool hold_incomplete, std::string& out) {
  size_t taken = 0;
  while (taken < text.size()) {
    const Sequence sequence = next_sequence(text.substr(taken));
    if (sequence.truncated && hold_incomplete) break;
    out += sequence.complete ? text.substr(taken, sequence.length) : kReplacementCharacter;
    taken += sequence.length;
  }
  return taken;
}

void append_code_point(char32_t c, std::string& out) {
  if (c < 0x80) {
    out += char(c);
  } else if (c < 0x800) {
    out += {char(0xC0 | c >> 6), char(0x80 | (c & 63))};
  } else if (c < 0x10000) {
    out += {char(0xE0 | c >> 12), char(0x80 | (c >> 6 & 63)), char(0x80 | (c & 63))};
  } else {
    out += {char(0xF0 | c >> 18), char(0x80 | (c >> 12 & 63)), char(0x80 | (c >> 6 & 63)),
            char(0x80 | (c & 63))};
  }
}

}  // namespace nibble
