#include "text/tool_arguments.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

std::string names(const ArgumentTypes& types) {
  std::string out;
  if (types.null) out += "null ";
  if (types.integer) out += "integer ";
  if (types.number) out += "number ";
  if (types.boolean) out += "boolean ";
  if (types.object) out += "object ";
  if (types.array) out += "array ";
  if (types.string) out += "string ";
  return out;
}

std::string types_of(const char* schema, const char* definitions = "{}") {
  const Json tools = {
      {{"type", "function"},
       {"function",
        {{"name", "f"},
         {"parameters",
          {{"properties", {{"k", Json::parse(schema)}}}, {"$defs", Json::parse(definitions)}}}}}}};
  return names(argument_types(tools, "f", "k"));
}

TEST(ArgumentTypes, FollowTheSchema) {
  EXPECT_EQ(types_of(R"({"type": "integer"})"), "integer ");
  EXPECT_EQ(types_of(R"({"type": ["string", "null"]})"), "null string ");
  EXPECT_EQ(types_of(R"({"anyOf": [{"type": "object"}, {"oneOf": [{"type": "array"}]}]})"),
            "object array ");
  EXPECT_EQ(types_of(R"({"enum": [1, 2.5, true, null, "a", [], {}]})"),
            "null integer number boolean object array string ");
  EXPECT_EQ(types_of(R"({"const": 3})"), "integer ");
  EXPECT_EQ(types_of(R"({"$ref": "#/$defs/point"})", R"({"point": {"type": "object"}})"),
            "object ");
  EXPECT_EQ(types_of(R"({"$ref": "#/$defs/a~1b/anyOf/1"})",
                     R"({"a/b": {"anyOf": [{"type": "array"}, {"type": "number"}]}})"),
            "number ");
}

TEST(ArgumentTypes, AreStringWhereNobodySaysMore) {
  EXPECT_EQ(types_of("{}"), "string ");
  EXPECT_EQ(types_of("true"), "string ");
  EXPECT_EQ(types_of(R"({"type": 3, "anyOf": {}, "enum": "x"})"), "string ");
  EXPECT_EQ(types_of(R"({"$ref": "#/$defs/absent"})"), "string ");
  EXPECT_EQ(types_of(R"({"$ref": "#anchor"})"), "string ");
  EXPECT_EQ(types_of(R"({"$ref": "#/$defs/~"})"), "string ");
  EXPECT_EQ(types_of(R"({"$ref": "#/$defs/a/99999999999999999999"})", R"({"a": [1]})"), "string ");
  EXPECT_EQ(types_of(R"({"$ref": "https://example.org/schema"})"), "string ");
  EXPECT_EQ(types_of(R"({"$ref": "#/$defs/a"})",
                     R"({"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]},
                         "b": {"$ref": "#/$defs/a"}})"),
            "string ");
  for (const char* tools : {"null", "[]", "[3]", R"([{"function": 1}])",
                            R"([{"function": {"name": "f", "parameters": {"properties": 1}}}])"}) {
    EXPECT_EQ(names(argument_types(Json::parse(tools), "f", "k")), "string ") << tools;
  }
}

TEST(ArgumentJson, WritesNumbersExactly) {
  const ArgumentTypes integer = {.integer = true}, number = {.number = true};
  EXPECT_EQ(argument_json(" 12345678901234567890123\n", integer), "12345678901234567890123");
  EXPECT_EQ(argument_json("+007", integer), "7");
  EXPECT_EQ(argument_json("-0", integer), "0");
  EXPECT_EQ(argument_json("3.0", integer), "3");
  EXPECT_EQ(argument_json("-1.5e3", number), "-1500");
  EXPECT_EQ(argument_json(".5", number), "0.5");
  EXPECT_EQ(argument_json("2.", number), "2");
  EXPECT_EQ(argument_json("9007199254740993", number), "9007199254740993");
  EXPECT_EQ(argument_json("0.1", number), "0.1");
  for (const char* text : {"", "+", ".", "1e", "1e999", "0x10", "1 2", "--1", "nan"}) {
    EXPECT_EQ(argument_json(text, number), json_string(text)) << text;
  }
  EXPECT_EQ(argument_json("3.5", integer), "\"3.5\"");
  const std::string huge(400, '9');
  EXPECT_EQ(argument_json(huge, integer), json_string(huge));
}

TEST(ArgumentJson, TriesTypesInOrder) {
  const ArgumentTypes all = {true, true, true, true, true, true, true};
  EXPECT_EQ(argument_json("NULL", all), "null");
  EXPECT_EQ(argument_json("1", all), "1");
  EXPECT_EQ(argument_json("True", all), "true");
  EXPECT_EQ(argument_json(" {\"a\": 1.50} ", all), "{\"a\": 1.50}");
  EXPECT_EQ(argument_json("[1]", all), "[1]");
  EXPECT_EQ(argument_json(" \"x\"", all), "\" \\\"x\\\"\"");
  EXPECT_EQ(argument_json("[1]", {.object = true}), "\"[1]\"");
  EXPECT_EQ(argument_json("0", {.boolean = true, .string = true}), "false");
}

TEST(ArgumentJson, KeepsDeepNestingAsText) {
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  const ArgumentTypes array = {.array = true};
  EXPECT_EQ(argument_json(nested(kMaxArgumentDepth), array), nested(kMaxArgumentDepth));
  for (const size_t depth : {size_t(kMaxArgumentDepth) + 1, size_t(100'000)}) {
    EXPECT_EQ(argument_json(nested(depth), array), json_string(nested(depth)));
  }
}

TEST(JsonString, EscapesWhatJsonDemands) {
  std::string text;
  for (int c = 0; c < 128; ++c) text += char(c);
  text += "é€😀";
  EXPECT_EQ(Json::parse(json_string(text)).get<std::string>(), text);
  EXPECT_EQ(json_string("a\"\\\n\x01\x7f/"), "\"a\\\"\\\\\\n\\u0001\x7f/\"");
}

}  // namespace
}  // namespace nibble
