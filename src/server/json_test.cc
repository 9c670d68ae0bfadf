#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "server/errors.h"
#include "server/fields.h"
#include "server/generation_defaults.h"
#include "server/json_body.h"
#include "server/json_writer.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

TEST(JsonWriter, WritesWhatParsesBack) {
  JsonWriter writer;
  writer.begin_object().key("a").begin_array().integer(-1).null().boolean(true).end_array();
  writer.key("b").begin_object().end_object().text_key("c\"\n").number(0.1f);
  writer.key("d").number(1e-7).key("e").string("x\x01\\\t\xff").key("f").raw("[1]");
  const std::string text = writer.end_object().take();
  EXPECT_EQ(text,
            "{\"a\":[-1,null,true],\"b\":{},\"c\\\"\\n\":0.1,\"d\":1e-07,"
            "\"e\":\"x\\u0001\\\\\\t\xEF\xBF\xBD\",\"f\":[1]}");
  EXPECT_EQ(Json::parse(text)["e"], "x\x01\\\t\xEF\xBF\xBD");
}

TEST(Errors, BodiesHaveOpenAisShape) {
  const Json error = Json::parse(error_body(400, "no \"way\"", "messages[0].role"))["error"];
  EXPECT_EQ(error["message"], "no \"way\"");
  EXPECT_EQ(error["type"], "BadRequestError");
  EXPECT_EQ(error["param"], "messages[0].role");
  EXPECT_EQ(error["code"], 400);
  const Json overflow = Json::parse(error_body(400, "m", "", "context_length_exceeded"))["error"];
  EXPECT_TRUE(overflow["param"].is_null());
  EXPECT_EQ(overflow["code"], "context_length_exceeded");
  EXPECT_EQ(Json::parse(error_body(404, "m"))["error"]["type"], "NotFoundError");
  EXPECT_EQ(Json::parse(error_body(503, "m"))["error"]["type"], "ServiceUnavailableError");
  EXPECT_EQ(error_response(503, "m").headers.front().first, "Retry-After");
}

TEST(Errors, BodiesStaySmall) {
  for (const char byte : {'a', '\x01', '"', '\xff'}) {
    const std::string huge(1 << 20, byte);
    const std::string body = error_body(400, huge, huge);
    EXPECT_LE(body.size(), kMaxErrorBodyBytes);
    EXPECT_TRUE(Json::parse(body)["error"]["message"].get<std::string>().ends_with("..."));
  }
}

int status_of(const std::string& text) {
  try {
    parse_json_object(text);
    return 200;
  } catch (const ApiError& error) {
    EXPECT_EQ(std::string(error.what()).find("json.exception"), std::string::npos);
    return error.status;
  }
}

TEST(JsonBody, RefusesWhatIsNotAnObject) {
  for (const char* text : {"", " ", "x", "{", "{\"a\":}", "{} x", "[]", "1", "\"a\"", "null",
                           "{\"a\": NaN}", "{\"a\": 1e999}", "{'a': 1}", "{\"a\": \"\xff\"}",
                           "{\"a\": \"\xC0\x80\"}", "{\"a\": \"\\ud800\"}", "{\"a\": \"\n\"}"}) {
    EXPECT_EQ(status_of(text), 400) << text;
  }
  for (const char* text : {"{}", "\xEF\xBB\xBF{}", "{\"a\": \"\\u0000\"}",
                           "{\"a\": \"\\ud83d\\ude00\"}", "{\"a\": 1, \"a\": 2}"}) {
    EXPECT_EQ(status_of(text), 200) << text;
  }
  EXPECT_EQ(parse_json_object("{\"a\": 1, \"a\": 2}")["a"], 2);
}

TEST(JsonBody, LimitsDepth) {
  const auto nested = [](int depth) {
    return "{\"a\":" + std::string(size_t(depth - 1), '[') + std::string(size_t(depth - 1), ']') +
           "}";
  };
  EXPECT_EQ(status_of(nested(128)), 200);
  EXPECT_EQ(status_of(nested(129)), 400);
  EXPECT_EQ(status_of(nested(10'000)), 400);
  EXPECT_EQ(status_of(std::string(1'000'000, '[')), 400);
  EXPECT_EQ(status_of("{\"a\": \"" + std::string(1000, '[') + "\\\"{\"}"), 200);
}

TEST(JsonBody, LimitsKeys) {
  const auto object = [](int keys) {
    std::string text = "{\"k\":0";
    for (int i = 0; i < keys; ++i) text += ",\"" + std::to_string(i) + "\":0";
    return text + "}";
  };
  EXPECT_EQ(status_of(object(5000)), 200);
  EXPECT_EQ(status_of(object(100'000)), 400);
}

TEST(Fields, ReadsAndRefuses) {
  const Json object = Json::parse(
      R"({"t": true, "i": 3, "whole": 4.0, "f": 0.5, "s": "abc", "null": null, "big": 1e300,
          "huge": 18446744073709551615, "a": [1, 2], "o": {}})");
  const Fields fields(object, "outer");
  EXPECT_EQ(fields.boolean("t"), true);
  EXPECT_EQ(fields.boolean("missing"), std::nullopt);
  EXPECT_EQ(fields.boolean("null"), std::nullopt);
  EXPECT_EQ(fields.integer("i", 0, 3), 3);
  EXPECT_EQ(fields.integer("whole", 0, 9), 4);
  EXPECT_EQ(fields.number("i", {.min = 0, .max = 3}), 3);
  EXPECT_EQ(fields.string("s", 3), "abc");
  EXPECT_EQ(fields.array("a", 2)->size(), 2u);
  EXPECT_NE(fields.object("o"), nullptr);
  EXPECT_THROW(fields.boolean("i"), ApiError);
  EXPECT_THROW(fields.integer("i", 4, 9), ApiError);
  EXPECT_THROW(fields.integer("f", 0, 9), ApiError);
  EXPECT_THROW(fields.integer("big", INT64_MIN, INT64_MAX), ApiError);
  EXPECT_THROW(fields.integer("huge", INT64_MIN, INT64_MAX), ApiError);
  EXPECT_THROW(fields.number("s", {.min = 0, .max = 1}), ApiError);
  EXPECT_THROW(fields.number("i", {.min = 3, .max = 9, .above_min = true}), ApiError);
  EXPECT_THROW(fields.string("s", 2), ApiError);
  EXPECT_THROW(fields.array("a", 1), ApiError);
  try {
    fields.integer("s", 1, 16);
    FAIL();
  } catch (const ApiError& error) {
    EXPECT_EQ(error.param, "outer.s");
    EXPECT_STREQ(error.what(), "`outer.s` must be an integer from 1 to 16, not a string.");
  }
}

class GenerationDefaultsTest : public testing::Test {
 protected:
  GenerationDefaultsTest() : folder_(testing::TempDir() + "generation_defaults") {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void write(const std::string& text) { std::ofstream(folder_ / "generation_config.json") << text; }
  std::string failure(const std::string& source, const std::string& overrides) {
    try {
      load_generation_defaults(folder_, source, overrides);
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }
  std::filesystem::path folder_;
};

TEST_F(GenerationDefaultsTest, TakesOverridesThenFileThenDefaults) {
  EXPECT_EQ(load_generation_defaults(folder_, "auto", "").temperature, 1.0f);
  write(R"({"do_sample": false, "temperature": 0.5, "top_p": 0.9, "eos_token_id": [1]})");
  EXPECT_EQ(load_generation_defaults(folder_, "auto", "").temperature, 0.5f);
  EXPECT_EQ(load_generation_defaults(folder_, folder_, "").top_p, 0.9f);
  EXPECT_EQ(load_generation_defaults(folder_, "vllm", "").temperature, 1.0f);
  const GenerationDefaults d = load_generation_defaults(
      folder_, "auto", R"({"temperature": 0.0, "max_tokens": 3000, "max_new_tokens": 7})");
  EXPECT_EQ(d.temperature, 0.0f);
  EXPECT_EQ(d.top_p, 0.9f);
  EXPECT_EQ(d.max_new_tokens, 7);
}

TEST_F(GenerationDefaultsTest, NamesWhatIsWrong) {
  write("{");
  EXPECT_NE(failure("auto", "").find("generation_config.json"), std::string::npos);
  write(R"({"temperature": "hot"})");
  EXPECT_NE(failure("auto", "").find("`temperature`"), std::string::npos);
  EXPECT_NE(failure("/nowhere", "").find("/nowhere"), std::string::npos);
  EXPECT_NE(failure("vllm", "[]").find("--override-generation-config"), std::string::npos);
  EXPECT_NE(failure("vllm", R"({"top_p": 2})").find("`top_p`"), std::string::npos);
}

}  // namespace
}  // namespace nibble
