#include "text/jinja.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kWallClock = 1772874302;  // 2026-03-07 09:05:02, as in the cases

// What minijinja does otherwise and the bridge cannot change. In the first group both engines
// refuse the template, for another reason.
const std::map<std::string, std::string> kDifferences = {
    {"loops 26", "a break outside of a loop is a syntax error"},
    {"scopes 25", "minijinja has a do tag; the sandbox refuses what it does"},
    {"undefined 17", "minus does not say that its operand is undefined"},
    {"errors 21", "attributes of Python's classes are undefined"},

    {"operators 28", "there is no unary plus"},
    {"operators 29", "% does not format strings; the format filter does"},
    {"operators 30", "% does not format strings; the format filter does"},
    {"operators 37", "values of any two types have an order"},
    {"operators 39", "`in` gives false where Python raises"},
    {"undefined 15", "`in` gives false where Python raises"},
    {"undefined 18", "values of any two types have an order"},
    {"filters 39", "no urlencode filter"},
    {"filters 40", "no xmlattr filter"},
    {"filters 41", "no striptags filter"},
    {"tojson 20", "map gives a list, not a generator"},
    {"tests 14", "no callable test"},
    {"macros 3", "macros take no further arguments"},
    {"macros 15", "a default value does not see the other arguments"},
    {"macros 20", "the arguments of a macro are a list, not a tuple"},
    {"strings 19", "title() gives capital letters, not title-case ones"},
    {"strings 22", "no expandtabs and translate"},
};

std::string name_of(JinjaError::Kind kind) {
  constexpr const char* kNames[] = {"syntax", "raised", "undefined", "security", "runtime"};
  return kNames[static_cast<int>(kind)];
}

// The text, or "error: " and its kind.
std::string outcome(const std::string& source, const std::string& context = "{}",
                    const JinjaOptions& options = {}) {
  try {
    return Jinja(source, options).render(context, kWallClock);
  } catch (const JinjaError& error) {
    return "error: " + name_of(error.kind);
  }
}

std::string repeated(const std::string& text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

TEST(Jinja, RendersAsJinja2DoesForTransformers) {
  std::ifstream file(NIBBLE_SOURCE_DIR "/tests/golden/jinja_cases.json");
  const Json cases = Json::parse(file).at("cases");
  EXPECT_EQ(cases.size(), 401u);
  for (const Json& test : cases) {
    const std::string name = test.at("name");
    const std::string source = test.at("template");
    const JinjaOptions options = {.trim_blocks = test.value("trim_blocks", true),
                                  .lstrip_blocks = test.value("lstrip_blocks", true)};
    const std::string expected = test.contains("error")
                                     ? "error: " + test.at("error").at("kind").get<std::string>()
                                     : test.at("expected").get<std::string>();
    const bool same = outcome(source, test.at("context").dump(), options) == expected;
    EXPECT_EQ(same, !kDifferences.contains(name)) << name << ": " << source;
  }
}

TEST(Jinja, NamesTheLineOfAnError) {
  const auto line_of = [](const std::string& source) {
    try {
      Jinja(source).render("{}", kWallClock);
    } catch (const JinjaError& error) {
      EXPECT_STRNE(error.what(), "");
      return error.line;
    }
    return -1;
  };
  EXPECT_EQ(line_of("a\nb\n{% if %}\n"), 3);
  EXPECT_EQ(line_of("a\r\n{{ x.y }}\r\n"), 2);
  EXPECT_EQ(line_of("{% generation %}\n{% endgeneration %}\n\n{{ raise_exception('x') }}"), 4);
}

TEST(Jinja, GivesTheMessageThatTheTemplateRaised) {
  try {
    Jinja("{{ raise_exception('roles must alternate') }}").render("{}", kWallClock);
    FAIL();
  } catch (const JinjaError& error) {
    EXPECT_STREQ(error.what(), "roles must alternate");
  }
}

TEST(Jinja, LeavesTextAloneThatOnlyLooksLikeATag) {
  EXPECT_EQ(outcome("{# {% generation %} #}x"), "x");
  EXPECT_EQ(outcome("{{ '{% generation %}' }}"), "{% generation %}");
  EXPECT_EQ(outcome("{% raw %}{% generation %}\\U0001F600{% endraw %}"),
            "{% generation %}\\U0001F600");
  EXPECT_EQ(outcome("{%- set x = '%}' -%} {{ x }}"), "%}");
  EXPECT_EQ(outcome("{{ {'a': {'b': '}}'}} }}"), "{'a': {'b': '}}'}}");
  EXPECT_EQ(outcome("{{ '\\\\U0001F600' }}"), "\\U0001F600");
}

TEST(Jinja, LoopsOverWhatPythonLoopsOver) {
  EXPECT_EQ(outcome("{% for x in [1, 2, 3] if x != 2 %}{{ x }}{% endfor %}"), "13");
  EXPECT_EQ(outcome("{% for x in 1, 2 %}{{ x }}{% endfor %}"), "12");
  EXPECT_EQ(outcome("{% for (k, v) in {'in': ' if '}.items() -%} {{ k }}{{ v }} {%- endfor %}"),
            "in if ");
  EXPECT_EQ(outcome("{% for x in ('a' if true else 'b') %}{{ x }}{% endfor %}"), "a");
  EXPECT_EQ(outcome("{% for x in [[1, [2]]] recursive %}{% if x is iterable %}{{ loop(x) }}"
                    "{% else %}{{ x }}{% endif %}{% endfor %}"),
            "12");
  EXPECT_EQ(outcome("{% for x in %}{% endfor %}"), "error: syntax");
  EXPECT_EQ(outcome("{% for x in m.content %}{% endfor %}", R"({"m": {"content": null}})"),
            "error: runtime");
}

// Every one of these has to come back with an error, soon and without much memory.
TEST(Jinja, BoundsTimeAndMemory) {
  const std::string kEndless[] = {
      "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{% set x = namespace(s='a') %}{% for i in range(99999) %}{% set x.s = x.s ~ x.s %}"
      "{% endfor %}",
      "{% for a in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
      "{{ 'a' * 1000000000 }}",
      "{{ [1] * 1000000000 }}",
      "{{ 'a'.ljust(1000000000) }}",
      "{{ 'a'.center(1000000000, 'xy') }}",
      "{{ 'a' | center(1000000000) }}",
      "{{ '%1000000000d' | format(1) }}",
      "{{ '{:1000000000}'.format(1) }}",
      "{{ 'a' | indent(1000000000, true) }}",
      "{{ ('\n' * 100000) | indent('b' * 100000, blank=true) }}",
      "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
      "{{ ('a' * 100000).join(['x'] * 100000) }}",
      "{{ (['x'] * 100000) | join('a' * 100000) }}",
      "{{ ['a' * 100000] * 100000 }}",
      "{{ (['a' * 100000] * 100000) | tojson }}",
      "{{ (['a' * 100000] * 100000) | string }}",
      "{{ ([[1] * 100000] * 100000) | tojson(indent=1000) }}",
      "{{ range(99999) | map('string') | list * 1000 }}",
      "{{ '{:>10000000000}'.format(1) }}",
      "{% set n = namespace(s=1) %}{% set n.s = n %}{{ n }}",
      "{% set n = namespace(s=1) %}{% set n.s = [{'a': n}] %}{{ 'a' ~ n }}",
      "{% set a = [1] %}" + repeated("{% set a = [a, a] %}", 60) + "{{ a == a }}",
      "{% set a = {} %}" + repeated("{% set a = {'a': a, 'b': a} %}", 60) + "{{ 'a' ~ a }}",
  };
  for (const std::string& source : kEndless) {
    EXPECT_EQ(outcome(source), "error: runtime") << source;
  }
}

TEST(Jinja, GivesFuelByTheSizeOfTheInput) {
  Json context;
  for (int i = 0; i < 20000; ++i) {
    context["messages"].push_back({{"role", "user"}, {"content", "word " + std::to_string(i)}});
  }
  const std::string source =
      "{% for m in messages %}{% if m.role == 'user' and m.content is string %}<|{{ m.role }}|>"
      "{{ m.content | trim }}{{ m | tojson }}{% endif %}{% endfor %}";
  EXPECT_GT(outcome(source, context.dump()).size(), 1000000u);
}

// 100,000 operators in a tag are refused; what is allowed is handled on a deep stack.
TEST(Jinja, BoundsChainsOfOperators) {
  const std::vector<std::pair<std::string, std::string>> chains = {
      {"1", "+1"},     {"1", "~1"},      {"x", "~x"},    {"x", "+x"},    {"x", ".a"},
      {"x", "[0]"},    {"x", "()"},      {"x", "|e"},    {"1", "<1"},    {"1", " or 1"},
      {"0", " and 0"}, {"1", " is odd"}, {"1", " in x"}, {"1", " if 0"}, {"1", " if 0 else 1"},
      {"2", "**1"},    {"x.a", "(x.a"},  {"[", "["},     {"(", "("},     {"{1:", "{1:"},
      {"-", "-"},      {"not ", "not "}};
  for (const auto& [first, next] : chains) {
    const int allowed = 8000 / static_cast<int>(next.size());
    const int refused = std::min(100000, (250 << 10) / static_cast<int>(next.size()));
    const std::string end = first == "-" || first == "not " ? "1 }}" : " }}";
    outcome("{{ " + first + repeated(next, allowed) + end, R"({"x": {"a": 1}})");
    EXPECT_EQ(outcome("{{ " + first + repeated(next, refused) + end), "error: syntax") << next;
  }
  EXPECT_EQ(outcome("{{ 1" + repeated("+1", 4000) + " }}"), "4001");
  EXPECT_EQ(outcome("{{ '" + repeated("+1", 50000) + "' }}").size(), 100000u);
}

TEST(Jinja, BoundsNestedBlocks) {
  for (const char* block : {"{% if 1 %}", "{% if 0 %}{% else %}", "{% for a in b %}", "{% with %}",
                            "{{", "{%", "{#", "{% raw %}"}) {
    const int length = (250 << 10) / static_cast<int>(std::string(block).size());
    EXPECT_EQ(outcome(repeated(block, length)), "error: syntax") << block;
  }
  EXPECT_EQ(outcome("{% if 0 %}" + repeated("{% elif 0 %}", 20000) + "{% endif %}"), "");
}

TEST(Jinja, SurvivesDeepValues) {
  const std::string nest =
      "{% set n = namespace(x=[]) %}{% for a in range(9) %}{% for b in range(99999) %}"
      "{% set n.x = [n.x] %}{% endfor %}{% endfor %}";
  EXPECT_EQ(outcome(nest), "error: runtime");
  const std::string deep =
      "{% set n = namespace(x=[]) %}{% for b in range(90000) %}{% set n.x = [n.x] %}{% endfor %}";
  for (const char* use : {"", "{{ n.x }}", "{{ n.x ~ '' }}", "{{ n.x | tojson }}",
                          "{{ n.x == [n.x] }}", "{{ n.x < [n.x] }}", "{{ {'a': n.x} | string }}",
                          "{{ n.x | pprint }}", "{{ [n.x, n.x] | unique }}", "{{ {n.x: 1} }}"}) {
    outcome(deep + use);
  }
  EXPECT_EQ(outcome("{{ x }}", "{\"x\": " + repeated("[", 1000) + repeated("]", 1000) + "}"),
            "error: runtime");
  EXPECT_EQ(outcome("{{ x }}", "{\"x\": " + repeated("[", 100) + repeated("]", 100) + "}"),
            repeated("[", 100) + repeated("]", 100));
}

TEST(Jinja, RefusesATemplateThatIsTooLong) {
  EXPECT_EQ(outcome(repeated("a", 256 << 10)).size(), 256u << 10);
  EXPECT_EQ(outcome(repeated("a", (256 << 10) + 1)), "error: syntax");
}

TEST(Jinja, RefusesWhatIsNotUtf8) {
  EXPECT_EQ(outcome("\xff"), "error: runtime");
  EXPECT_EQ(outcome("x", "\xff"), "error: runtime");
  EXPECT_EQ(outcome("x", "{"), "error: runtime");
}

}  // namespace
}  // namespace nibble
