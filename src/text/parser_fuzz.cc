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

// Tags and words in random order, and now and then any bytes.
std::string random_answer(FuzzedDataProvider& data) {
  std::string text;
  while (data.remaining_bytes() > 0) {
    const size_t choice = data.ConsumeIntegralInRange<size_t>(1, 40);
    if (choice < std::size(kTagNames)) {
      text += kTagNames[choice];
    } else if (choice - std::size(kTagNames) < std::size(kWords)) {
      text += kWords[choice - std::size(kTagNames)];
    } else {
      text += data.ConsumeRandomLengthString(16);
    }
  }
  std::string valid;
  append_valid_utf8(text, false, valid);
  return valid;
}

std::string joined(const std::vector<Piece>& pieces) {
  std::string text;
  for (const Piece& piece : pieces) text += piece.text;
  return text;
}

void check_answer(FuzzedDataProvider& data) {
  ParserOptions options = {.reasoning = data.ConsumeBool(),
                           .tool_calls = data.ConsumeBool(),
                           .starts_in_reasoning = data.ConsumeBool(),
                           .tags_in_text = true,
                           .tools = kTools};
  const bool complete = data.ConsumeBool();
  std::vector<size_t> cuts;
  for (int i = 0; i < 8; ++i) cuts.push_back(data.ConsumeIntegral<uint8_t>());
  const std::string text = random_answer(data);
  for (size_t& at : cuts) at = std::min(at, text.size());
  std::sort(cuts.begin(), cuts.end());

  const ParsedAnswer whole = parse_answer(options, cut(text, {}), complete);
  CHECK(parse_answer(options, cut(text, cuts), complete) == whole);
  for (const ParsedCall& call : whole.calls) {
    CHECK(!call.name.empty());
    CHECK(nlohmann::json::parse(call.arguments).is_object());
  }
  if (!options.reasoning && !options.tool_calls) {
    CHECK(whole.content == without_leading_blanks(text));
    CHECK(whole.reasoning.empty() && whole.calls.empty());
  }
  // A tag cut off by the end of the text has no token.
  const std::vector<Piece> pieces = cut_at_tags(text);
  CHECK(joined(pieces) == text);
  if (text.rfind('<') == std::string::npos || text.rfind('>') > text.rfind('<')) {
    options.tags_in_text = false;
    CHECK(parse_answer(options, pieces, complete) == whole);
  }
}

}  // namespace
}  // namespace nibble

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  FuzzedDataProvider data(bytes, size);
  nibble::check_answer(data);
  return 0;
}
