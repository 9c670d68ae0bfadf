#include "checkpoint/json_file.h"

#include <string>

#include "checkpoint/test_files.h"

namespace nibble {
namespace {

constexpr int64_t kMax = INT64_MAX;

JsonFile parse(const std::string& text) {
  return JsonFile::parse("config.json", text);
}

TEST(JsonFile, ReadsTypedValues) {
  const JsonFile file = parse(R"({"n": 7, "x": 1e-5, "flag": true, "name": "glm", "none": null,
                                  "rope": {"theta": 1000000.0, "deep": {"n": 3}}, "eos": [1, 2], "one": 5})");
  EXPECT_EQ(file.integer("n", 1, 10), 7);
  EXPECT_EQ(file.number("x", 0, 1), 1e-5);
  EXPECT_EQ(file.number("n", 0, 10), 7.0);
  EXPECT_EQ(file.boolean("flag"), true);
  EXPECT_EQ(file.string("name"), "glm");
  EXPECT_EQ(file.number("rope.theta", 1, 1e9), 1e6);
  EXPECT_EQ(file.integer("rope.deep.n", 0, 9), 3);
  EXPECT_EQ(file.integers("eos", 0, 9), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(file.integers("one", 0, 9), std::vector<int64_t>{5});
  EXPECT_TRUE(file.has("rope"));
  EXPECT_EQ(file.required_integer("n", 1, 10), 7);
  EXPECT_EQ(file.required_number("x", 0, 1), 1e-5);
  EXPECT_EQ(file.name(), "config.json");
}

TEST(JsonFile, TakesMissingKeysAndNullAsNothing) {
  const JsonFile file = parse(R"({"none": null, "outer": {}})");
  for (const char* key : {"none", "missing", "outer.missing", "none.inner", "missing.inner"}) {
    EXPECT_FALSE(file.has(key)) << key;
    EXPECT_EQ(file.integer(key, 0, 1), std::nullopt);
    EXPECT_EQ(file.number(key, 0, 1), std::nullopt);
    EXPECT_EQ(file.boolean(key), std::nullopt);
    EXPECT_EQ(file.string(key), std::nullopt);
    EXPECT_TRUE(file.integers(key, 0, 1).empty());
    EXPECT_EQ(error_of([&] { file.required_integer(key, 0, 1); }),
              "config.json: " + std::string(key) + " is missing");
    EXPECT_EQ(error_of([&] { file.required_number(key, 0, 1); }),
              "config.json: " + std::string(key) + " is missing");
  }
}

TEST(JsonFile, NamesKeyValueAndWhatWouldBeRight) {
  const JsonFile file =
      parse(R"({"n": 70, "x": -0.5, "s": "yes", "list": [1, "b"], "big": 18446744073709551615,
                                  "f": 4.0, "inner": 3})");
  EXPECT_ERROR(file.integer("n", 1, 64),
               "config.json: n is 70; it must be an integer between 1 and 64");
  EXPECT_ERROR(file.integer("s", 1, 64), "s is \"yes\"; it must be an integer between 1 and 64");
  EXPECT_ERROR(file.integer("f", 1, 64), "f is 4.0; it must be an integer between 1 and 64");
  EXPECT_ERROR(file.integer("big", 0, kMax), "big is 18446744073709551615; it must be an integer");
  EXPECT_ERROR(file.number("x", 0, 1), "x is -0.5; it must be a number between 0 and 1");
  EXPECT_ERROR(file.number("s", 0, 1), "s is \"yes\"; it must be a number between 0 and 1");
  EXPECT_ERROR(file.boolean("s"), "s is \"yes\"; it must be true or false");
  EXPECT_ERROR(file.string("n"), "n is 70; it must be a string");
  EXPECT_ERROR(file.integers("list", 0, 9), "list is \"b\"; it must be an integer between 0 and 9");
  EXPECT_ERROR(file.integer("inner.n", 0, 9), "inner is 3; it must be an object");
  EXPECT_ERROR(file.fail("n", "is wrong"), "config.json: n is wrong");
}

TEST(JsonFile, CutsLongValuesShort) {
  const JsonFile file = parse(R"({"s": ")" + std::string(100'000, 'a') + R"("})");
  EXPECT_LT(error_of([&] { file.integer("s", 0, 1); }).size(), 200u);
}

TEST(JsonFile, RefusesWhatIsNotOneJsonObject) {
  for (const char* text : {"", "{", "{} x", "{'a': 1}", "{\"a\": NaN}", "{\"a\": 1,}",
                           "{\"a\": 1e999}", "{\"\xff\": 1}"}) {
    EXPECT_ERROR(parse(text), "config.json: not JSON: ");
  }
  EXPECT_ERROR(parse("[]"), "config.json: must be a JSON object");
  EXPECT_ERROR(parse("3"), "config.json: must be a JSON object");
  EXPECT_ERROR(parse(R"({"a": {"b": 1, "c": {}, "b": 2}})"), "the key \"b\" appears twice");
  EXPECT_NO_THROW(parse(R"({"a": {"b": 1}, "c": {"b": 2}})"));
}

TEST(JsonFile, BoundsDepthAndSize) {
  const auto nested = [](int depth) {
    return R"({"a":)" + std::string(depth - 1, '[') + std::string(depth - 1, ']') + "}";
  };
  EXPECT_NO_THROW(parse(nested(128)));
  EXPECT_ERROR(parse(nested(129)), "config.json: nested deeper than 128");
  EXPECT_ERROR(parse(nested(1'000'000)), "config.json: nested deeper than 128");
  EXPECT_ERROR(parse("{" + std::string(size_t(64) << 20, ' ') + "}"), "larger than 64 MiB");
}

using JsonFileTest = FolderTest;

TEST_F(JsonFileTest, LoadsFiles) {
  EXPECT_EQ(JsonFile::load(write("a.json", R"({"n": 1})")).integer("n", 0, 9), 1);
  EXPECT_ERROR(JsonFile::load(folder_ / "none.json"), "none.json: No such file");
  EXPECT_ERROR(JsonFile::load(folder_), "not a regular file");
  EXPECT_ERROR(JsonFile::load(write("empty.json", "")), "empty.json: the file is empty");
  EXPECT_ERROR(JsonFile::load(write("bad.json", "{")), "bad.json: not JSON");
}

}  // namespace
}  // namespace nibble
