#include "text/jinja.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kWallClock = 1772874302;  // 2026-03-07 09:05:02, as in the cases

const std::string& name_of(JinjaError::Kind kind) {
  static const std::string kNames[] = {"syntax", "raised", "undefined", "security", "runtime"};
  return kNames[static_cast<int>(kind)];
}

// The text, or "error: " and its kind.
std::string outcome(const std::string& source, const std::string& context,
                    const JinjaOptions& options, std::string* message) {
  try {
    return Jinja(source, options).render(context, kWallClock);
  } catch (const JinjaError& error) {
    *message = error.what();
    return "error: " + name_of(error.kind);
  }
}

TEST(Jinja, RendersAsJinja2DoesForTransformers) {
  std::ifstream file(NIBBLE_SOURCE_DIR "/tests/golden/jinja_cases.json");
  const Json cases = Json::parse(file).at("cases");
  int passed = 0;
  for (const Json& test : cases) {
    const std::string name = test.at("name");
    const JinjaOptions options = {.trim_blocks = test.value("trim_blocks", true),
                                  .lstrip_blocks = test.value("lstrip_blocks", true)};
    const std::string expected = test.contains("error")
                                     ? "error: " + test.at("error").at("kind").get<std::string>()
                                     : test.at("expected").get<std::string>();
    std::string message;
    const std::string source = test.at("template");
    const std::string actual = outcome(source, test.at("context").dump(), options, &message);
    passed += actual == expected;
    EXPECT_EQ(actual, expected) << name << ": " << source << " " << message;
  }
  printf("%d of %zu\n", passed, cases.size());
}

}  // namespace
}  // namespace nibble
