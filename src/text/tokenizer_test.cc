#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/utf8.h"
#include "text/detokenizer.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;
using Ids = std::vector<int32_t>;

const std::filesystem::path kPocket = NIBBLE_SOURCE_DIR "/models/pocket";

std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class TokenizerTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    tokenizer_ = Tokenizer::load(kPocket).release();
    cases_ = new Json(Json::parse(read(NIBBLE_SOURCE_DIR "/tests/golden/tokenizer_cases.json")));
  }
  static void TearDownTestSuite() {
    delete tokenizer_;
    delete cases_;
  }

  // Every stream of ids that the cases know.
  static std::vector<Ids> id_lists() {
    std::vector<Ids> lists;
    for (const Json& test : cases_->at("cases")) {
      lists.push_back(test.at("ids"));
      if (test.contains("ids_plain")) lists.push_back(test.at("ids_plain"));
    }
    for (const Json& test : cases_->at("decode")) lists.push_back(test.at("ids"));
    return lists;
  }

  static inline Tokenizer* tokenizer_ = nullptr;
  static inline Json* cases_ = nullptr;
};

TEST_F(TokenizerTest, EncodesAsTheReferenceDoes) {
  for (const Json& test : cases_->at("cases")) {
    const std::string text = test.at("text");
    EXPECT_EQ(tokenizer_->encode(text), test.at("ids").get<Ids>()) << text;
    EXPECT_EQ(tokenizer_->encode_plain(text), test.value("ids_plain", test.at("ids")).get<Ids>())
        << text;
  }
}

TEST_F(TokenizerTest, EncodesLongRepeats) {
  for (const Json& test : cases_->at("repeats")) {
    std::string text;
    for (int i = 0; i < test.at("times"); ++i) text += test.at("unit").get<std::string>();
    Ids expected = test.at("head");
    for (int i = 0; i < test.at("cycle_times"); ++i) {
      for (const int32_t id : test.at("cycle")) expected.push_back(id);
    }
    for (const int32_t id : test.at("tail")) expected.push_back(id);
    EXPECT_EQ(tokenizer_->encode(text), expected) << test.at("unit");
  }
}

TEST_F(TokenizerTest, DecodesAsTheReferenceDoes) {
  for (const Json& test : cases_->at("cases")) {
    const Ids ids = test.at("ids");
    EXPECT_EQ(tokenizer_->decode(ids, false), test.at("text").get<std::string>());
    EXPECT_EQ(tokenizer_->decode(ids, true),
              test.value("decoded_skip_special", test.at("text")).get<std::string>());
  }
  for (const Json& test : cases_->at("decode")) {
    EXPECT_EQ(tokenizer_->decode(test.at("ids"), false), test.at("text").get<std::string>());
  }
}

TEST_F(TokenizerTest, StreamedPiecesJoinToTheDecodedText) {
  for (const Ids& ids : id_lists()) {
    for (const bool skip_special : {false, true}) {
      Detokenizer detokenizer(*tokenizer_, skip_special);
      std::string text;
      for (const int32_t id : ids) {
        const std::string piece = detokenizer.push(id);
        EXPECT_TRUE(is_valid_utf8(piece));
        text += piece;
      }
      text += detokenizer.flush();
      EXPECT_EQ(text, tokenizer_->decode(ids, skip_special));
      EXPECT_EQ(detokenizer.flush(), "");
    }
  }
}

TEST_F(TokenizerTest, KnowsEveryToken) {
  EXPECT_EQ(tokenizer_->vocab_size(), 6144);
  size_t longest = 0;
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    EXPECT_FALSE(tokenizer_->bytes(id).empty()) << id;
    longest = std::max(longest, tokenizer_->bytes(id).size());
  }
  EXPECT_EQ(tokenizer_->longest_token_bytes(), static_cast<int>(longest));
  for (const int32_t id : {-1, 6144, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(tokenizer_->bytes(id), "\uFFFD");
    EXPECT_FALSE(tokenizer_->is_added(id));
    EXPECT_FALSE(tokenizer_->is_special(id));
  }
  EXPECT_EQ(tokenizer_->decode({6144, 200000}, true), "\uFFFD\uFFFD");
  EXPECT_EQ(Detokenizer(*tokenizer_, true).push(6144), "\uFFFD");
  const int32_t user = tokenizer_->added_token("<|user|>").value();
  EXPECT_EQ(tokenizer_->bytes(user), "<|user|>");
  EXPECT_TRUE(tokenizer_->is_added(user));
  EXPECT_TRUE(tokenizer_->is_special(user));
  const int32_t think = tokenizer_->added_token("<think>").value();
  EXPECT_TRUE(tokenizer_->is_added(think));
  EXPECT_FALSE(tokenizer_->is_special(think));
  EXPECT_FALSE(tokenizer_->is_added(0));
  EXPECT_EQ(tokenizer_->added_token("no such token"), std::nullopt);

  const std::vector<std::string>& added = tokenizer_->added_tokens();
  EXPECT_EQ(added.size(), 36u);
  for (size_t i = 1; i < added.size(); ++i) EXPECT_GE(added[i - 1].size(), added[i].size());
}

TEST_F(TokenizerTest, RepairsBrokenUtf8) {
  EXPECT_EQ(tokenizer_->encode("a\xff\xc3"), tokenizer_->encode("a\uFFFD\uFFFD"));
  EXPECT_EQ(tokenizer_->encode_plain("\xe2\x82"), tokenizer_->encode_plain("\uFFFD"));
}

TEST_F(TokenizerTest, TakesHugeInputs) {
  for (const std::string unit : {" ", "a", "\xF0\x9F\x98\x80"}) {
    std::string text;
    while (text.size() < 1 << 20) text += unit;
    EXPECT_EQ(tokenizer_->decode(tokenizer_->encode(text), false), text);
    EXPECT_EQ(tokenizer_->decode(tokenizer_->encode_plain(text + "x"), false), text + "x");
  }
}

// What parse() says of the pocket's tokenizer.json after `change`.
std::string refusal(const std::string& json) {
  try {
    Tokenizer::parse("some/tokenizer.json", json);
    return "accepted";
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(TokenizerFile, RefusesWhatIsNoByteLevelTokenizer) {
  const std::string text = read(kPocket / "tokenizer.json");
  const auto changed = [&text](const std::string& pointer, const Json& value) {
    Json json = Json::parse(text);
    json[Json::json_pointer(pointer)] = value;
    return json.dump();
  };
  const std::vector<std::pair<std::string, std::string>> broken = {
      {"", "EOF"},
      {"[]", "invalid"},
      {"{}", "Model"},
      {"\xff", "UTF-8"},
      {text.substr(0, text.size() / 2), "EOF"},
      {changed("/model/merges/0", "nosuch token"), "Merge"},
      {changed("/model/merges/0", Json::array({"nosuch", "token"})), "nosuch"},
      {changed("/model/merges/0", 7), ""},
      {changed("/model/vocab", Json::object()), ""},
      {changed("/decoder", nullptr), "ByteLevel"},
      {changed("/decoder", {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}}),
       "ByteLevel"},
      {changed("/pre_tokenizer", nullptr), "ByteLevel"},
      {changed("/pre_tokenizer", {{"type", "Whitespace"}}), "ByteLevel"},
      {changed("/model/vocab/zzzz", 4000000000u), "ids"},
      {std::string(100000, '['), ""},
  };
  for (const auto& [json, hint] : broken) {
    const std::string message = refusal(json);
    EXPECT_TRUE(message.starts_with("some/tokenizer.json")) << message;
    EXPECT_NE(message.find(hint), std::string::npos) << message << " lacks " << hint;
  }
  EXPECT_EQ(refusal(text), "accepted");
}

TEST(TokenizerFile, NamesAFileThatIsMissing) {
  try {
    Tokenizer::load("/no/such/folder");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("/no/such/folder/tokenizer.json"), std::string::npos);
  }
}

}  // namespace
}  // namespace nibble
