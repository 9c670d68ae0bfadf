// Random answers: no split and neither way of naming tags changes the result, arguments are JSON,
// and nothing is lost where no tag means anything.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>

#include "base/utf8.h"
#include "tests/parser_cases.h"
#include "text/blanks.h"

namespace nibble {
namespace {

const nlohmann::ordered_json kTools = nlohmann::ordered_json::parse(R"([
  {"type": "function", "function": {"name": "f", "parameters": {"properties": {
    "s": {"type": "string"}, "i": {"type": "integer"}, "n": {"type": "number"},
    "b": {"type": "boolean"}, "o": {"type": "object"}, "a": {"type": "array"},
    "x": {"type": ["null", "integer", "number", "boolean", "object", "array", "string"]}}}}}])");

constexpr const char* kWords[] = {"f",    "s",    "i",      "n",  "b",  "o",     "a",
                                  "x",    " ",    "\n",     "<",  "{",  "}",     "[1]",
                                  "true", "null", "-1.5e3", "\"", "</", "<arg_", "<tool_call"};

std::string valid_utf8(const std::string& text) {
  std::string valid;
  append_valid_utf8(text, false, valid);
  return valid;
}

// Tags and words in random order, and now and then any bytes.
std::vector<Piece> random_pieces(FuzzedDataProvider& data) {
  std::vector<Piece> pieces;
  while (data.remaining_bytes() > 0) {
    const size_t choice = data.ConsumeIntegralInRange<size_t>(1, 40);
    if (choice < std::size(kTagNames)) {
      pieces.push_back({.text = std::string(kTagNames[choice]), .tag = Tag(choice)});
    } else if (choice - std::size(kTagNames) < std::size(kWords)) {
      pieces.push_back({.text = kWords[choice - std::size(kTagNames)]});
    } else {
      pieces.push_back({.text = valid_utf8(data.ConsumeRandomLengthString(16))});
    }
  }
  return pieces;
}

std::string joined(const std::vector<Piece>& pieces) {
  std::string text;
  for (const Piece& piece : pieces) text += piece.text;
  return text;
}

// The same pieces, texts byte by byte.
std::vector<Piece> bytes_of(const std::vector<Piece>& pieces) {
  std::vector<Piece> bytes;
  for (const Piece& piece : pieces) {
    if (piece.tag != Tag::kNone) {
      bytes.push_back(piece);
      continue;
    }
    for (const char c : piece.text) bytes.push_back({.text = std::string(1, c)});
  }
  return bytes;
}

void check_answer(const ParserOptions& options, const ParsedAnswer& answer,
                  const std::string& text) {
  for (const ParsedCall& call : answer.calls) {
    CHECK(!call.name.empty());
    CHECK(nlohmann::json::parse(call.arguments).is_object());
  }
  const bool no_tags = text.find('<') == std::string::npos;
  if (no_tags || (!options.reasoning && !options.tool_calls)) {
    const bool thought = options.reasoning && options.starts_in_reasoning;
    CHECK(answer.reasoning == (thought ? without_outer_blanks(text) : ""));
    CHECK(answer.content == (thought ? "" : without_leading_blanks(text)));
    CHECK(answer.calls.empty());
  }
}

void parse_random_answer(FuzzedDataProvider& data) {
  ParserOptions options = {.reasoning = data.ConsumeBool(),
                           .tool_calls = data.ConsumeBool(),
                           .starts_in_reasoning = data.ConsumeBool(),
                           .tools = kTools};
  const bool complete = data.ConsumeBool();
  std::vector<size_t> cuts;
  for (int i = 0; i < 8; ++i) cuts.push_back(data.ConsumeIntegral<uint8_t>());
  const std::vector<Piece> pieces = random_pieces(data);
  const std::string text = joined(pieces);
  for (size_t& at : cuts) at = std::min(at, text.size());
  std::sort(cuts.begin(), cuts.end());

  const ParsedAnswer from_tokens = parse_answer(options, pieces, complete);
  check_answer(options, from_tokens, text);
  CHECK(parse_answer(options, bytes_of(pieces), complete) == from_tokens);
  const ParsedAnswer from_found_tags = parse_answer(options, cut_at_tags(text), complete);

  options.tags_in_text = true;
  const ParsedAnswer whole = parse_answer(options, cut(text, {}), complete);
  check_answer(options, whole, text);
  CHECK(parse_answer(options, cut(text, cuts), complete) == whole);
  // A tag cut off by the end of the text has no token.
  const size_t bracket = text.rfind('<');
  if (bracket == std::string::npos || text.find('>', bracket) != std::string::npos) {
    CHECK(from_found_tags == whole);
  }
}

}  // namespace
}  // namespace nibble

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  FuzzedDataProvider data(bytes, size);
  nibble::parse_random_answer(data);
  return 0;
}
