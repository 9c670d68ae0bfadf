// Input 'T' + text: encoding and decoding keep valid text. Anything else: a tokenizer.json.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/check.h"
#include "base/error.h"
#include "base/utf8.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace {

// Every byte is a token; "<s>" is added.
std::string byte_tokenizer() {
  std::string vocab;
  int others = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
    std::string character;
    nibble::append_code_point(static_cast<char32_t>(printable ? byte : others++), character);
    if (character == "\"" || character == "\\") character.insert(0, "\\");
    vocab += (byte > 0 ? ",\"" : "\"") + character + "\":" + std::to_string(byte);
  }
  return R"({"version":"1.0","truncation":null,"padding":null,"normalizer":null,"post_processor":null,
    "added_tokens":[{"id":256,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,
    "normalized":false,"special":true}],"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,
    "trim_offsets":true,"use_regex":true},"decoder":{"type":"ByteLevel","add_prefix_space":true,
    "trim_offsets":true,"use_regex":true},"model":{"type":"BPE","dropout":null,"unk_token":null,
    "continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,
    "byte_fallback":false,"ignore_merges":false,"vocab":{)" +
         vocab + R"(},"merges":[]}})";
}

void round_trip(const nibble::Tokenizer& tokenizer, const std::string& text) {
  std::string repaired;
  nibble::append_valid_utf8(text, false, repaired);
  for (const std::vector<int32_t>& ids : {tokenizer.encode(text), tokenizer.encode_plain(text)}) {
    CHECK(tokenizer.decode(ids, false) == repaired);
    nibble::Detokenizer detokenizer(tokenizer, false);
    std::string streamed;
    for (const int32_t id : ids) streamed += detokenizer.push(id);
    CHECK(streamed + detokenizer.flush() == repaired);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto kTokenizer = nibble::Tokenizer::parse("fuzz", byte_tokenizer());
  const std::string input(reinterpret_cast<const char*>(data), size);
  if (input.starts_with('T')) {
    round_trip(*kTokenizer, input.substr(1));
    return 0;
  }
  try {
    const auto tokenizer = nibble::Tokenizer::parse("fuzz", input);
    tokenizer->decode(tokenizer->encode("Hello <s> \xC3\xA9 1234\n"), true);
  } catch (const nibble::Error&) {
  } catch (const nibble::ApiError&) {
  }
  return 0;
}
