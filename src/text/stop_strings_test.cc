#include "text/stop_strings.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace nibble {
namespace {

struct Outcome {
  std::string text{};
  std::optional<std::string> matched{};
  bool operator==(const Outcome&) const = default;
};

Outcome run(const std::vector<std::string>& strings, bool include,
            const std::vector<std::string>& pieces) {
  StopStrings stops(strings, include);
  Outcome outcome;
  for (const std::string& piece : pieces) outcome.text += stops.push(piece);
  outcome.text += stops.flush();
  outcome.matched = stops.matched();
  return outcome;
}

// The rule, said plainly: the end that comes first, then the longest string.
Outcome expected(const std::vector<std::string>& strings, bool include, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    const std::string* longest = nullptr;
    for (const std::string& string : strings) {
      if (string.empty() || !text.substr(0, end).ends_with(string)) continue;
      if (longest == nullptr || string.size() > longest->size()) longest = &string;
    }
    if (longest) return {text.substr(0, include ? end : end - longest->size()), *longest};
  }
  return {text, std::nullopt};
}

TEST(StopStrings, FindsTheFirstMatchUnderEverySplit) {
  const std::vector<std::vector<std::string>> sets = {{},
                                                      {""},
                                                      {"."},
                                                      {"abab"},
                                                      {"aab", "b"},
                                                      {"abc", "bc"},
                                                      {"bc", "b"},
                                                      {"\n\n"},
                                                      {"aaa"},
                                                      {"ab", "ba"},
                                                      {"abcabd", "abcabe"},
                                                      {"ü", "a"},
                                                      {"cab", "abca"}};
  const std::vector<std::string> texts = {"",       "abcabcabdx", "aaaaab", "a.b.c", "ababab",
                                          "x\n\ny", "bcabca",     "grün a", "aabb",  "\n"};
  for (const auto& strings : sets) {
    for (const std::string& text : texts) {
      for (const bool include : {false, true}) {
        const Outcome wanted = expected(strings, include, text);
        std::vector<std::string> bytes;
        for (const char c : text) bytes.emplace_back(1, c);
        EXPECT_EQ(run(strings, include, bytes), wanted) << text;
        for (size_t cut = 0; cut <= text.size(); ++cut) {
          EXPECT_EQ(run(strings, include, {text.substr(0, cut), text.substr(cut)}), wanted)
              << text << " cut at " << cut;
        }
      }
    }
  }
}

TEST(StopStrings, AgreesWithTheRuleOnRandomText) {
  std::mt19937 random(1);
  const auto word = [&](size_t longest) {
    std::string text(random() % (longest + 1), 'a');
    for (char& c : text) c = char('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 20000; ++round) {
    const std::vector<std::string> strings = {word(6), word(6), word(8)};
    const std::vector<std::string> pieces = {word(9), word(9), word(9)};
    const bool include = random() % 2;
    EXPECT_EQ(run(strings, include, pieces),
              expected(strings, include, pieces[0] + pieces[1] + pieces[2]));
  }
}

TEST(StopStrings, HoldsBackNoMoreThanCouldMatch) {
  StopStrings stops({"<end>", "stop"}, false);
  EXPECT_EQ(stops.push("Hello <"), "Hello ");
  EXPECT_EQ(stops.push("b> s"), "<b> ");
  EXPECT_EQ(stops.push("to"), "");
  EXPECT_EQ(stops.push("ny"), "stony");
  EXPECT_EQ(stops.push("<en"), "");
  EXPECT_EQ(stops.flush(), "<en");
  EXPECT_FALSE(stops.matched());
}

TEST(StopStrings, DropsWhatFollowsAMatch) {
  StopStrings stops({"END"}, true);
  EXPECT_EQ(stops.push("a E"), "a ");
  EXPECT_EQ(stops.push("ND b"), "END");
  EXPECT_EQ(stops.push("END"), "");
  EXPECT_EQ(stops.flush(), "");
  EXPECT_EQ(stops.matched(), "END");
}

// Anything but linear time would not end before the test's time limit.
TEST(StopStrings, EndsOnALongNearMatch) {
  StopStrings stops({std::string(100'000, 'a') + "b"}, false);
  size_t length = 0;
  for (int i = 0; i < 100'000; ++i) length += stops.push("aaaaaaaaaa").size();
  EXPECT_EQ(length, 900'000u);
}

}  // namespace
}  // namespace nibble
