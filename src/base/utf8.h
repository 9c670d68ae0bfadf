// UTF-8: validity and repair, as the Unicode standard recommends it (and Rust and Python do): each
// maximal part of an ill-formed sequence becomes one U+FFFD.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace nibble {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

bool is_valid_utf8(std::string_view text);

// Appends `text` to `out`, repaired. With `hold_incomplete` an unfinished but so far valid sequence
// at the end is not taken. Returns the number of bytes taken.
size_t append_valid_utf8(std::string_view text, bool hold_incomplete, std::string& out);

// Encodes a code point (at most U+10FFFF, no surrogate).
void append_code_point(char32_t code_point, std::string& out);

}  // namespace nibble
