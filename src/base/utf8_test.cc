#include "base/utf8.h"

#include <gtest/gtest.h>

#include "base/log.h"

namespace nibble {
namespace {

std::string repaired(std::string_view text) {
  std::string out;
  EXPECT_EQ(append_valid_utf8(text, false, out), text.size());
  return out;
}

TEST(Utf8, ValidTextIsUnchanged) {
  const std::string text = "a\xC3\xA9\xE4\xBD\xA0\xF0\x9F\x98\x80";
  EXPECT_TRUE(is_valid_utf8(text));
  EXPECT_EQ(repaired(text), text);
}

TEST(Utf8, EachMaximalPartBecomesOneReplacement) {
  EXPECT_EQ(repaired("\xFF"), "\xEF\xBF\xBD");
  EXPECT_EQ(repaired("\xE4\xBD"
                     "a"),
            "\xEF\xBF\xBD"
            "a");
  EXPECT_EQ(repaired("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");  // a surrogate
  EXPECT_EQ(repaired("\xC0\xAF"), "\xEF\xBF\xBD\xEF\xBF\xBD");                  // overlong
  EXPECT_EQ(repaired("\xF0\x9F\x98"), "\xEF\xBF\xBD");
  EXPECT_FALSE(is_valid_utf8("\xF4\x90\x80\x80"));
}

TEST(Utf8, IncompleteEndIsHeld) {
  std::string out;
  EXPECT_EQ(append_valid_utf8("ab\xF0\x9F\x98", true, out), 2u);
  EXPECT_EQ(out, "ab");
  EXPECT_EQ(append_valid_utf8("\xF0\x9F"
                              "x",
                              true, out),
            3u);
  EXPECT_EQ(out, "ab\xEF\xBF\xBDx");
}

TEST(Utf8, CodePoints) {
  std::string out;
  for (const char32_t c : {U'a', U'\u00e9', U'\u4f60', U'\U0001F600'}) append_code_point(c, out);
  EXPECT_EQ(out, "a\xC3\xA9\xE4\xBD\xA0\xF0\x9F\x98\x80");
}

TEST(Log, ControlCharactersAreEscaped) {
  EXPECT_EQ(escape_control("a\n\x1b[31m\tb\x7f"), "a\\n\\x1b[31m\\tb\\x7f");
  EXPECT_EQ(escape_control("\xFF\xE4\xBD\xA0"), "\xEF\xBF\xBD\xE4\xBD\xA0");
}

}  // namespace
}  // namespace nibble
