// The parser's cases as a server meets them: the pocket tokenizer's tokens, each tag by its id,
// text through the streaming detokenizer.
#include <gtest/gtest.h>

#include "tests/parser_cases.h"
#include "text/detokenizer.h"
#include "text/tag_ids.h"

namespace nibble {
namespace {

TEST(ParserTokens, MeetEveryCase) {
  const std::string source = NIBBLE_SOURCE_DIR;
  const auto tokenizer = Tokenizer::load(source + "/models/pocket");
  const TagIds tags(*tokenizer);
  const auto cases = load_parser_cases(source);
  EXPECT_EQ(cases.size(), 107u);
  for (const ParserCase& parser_case : cases) {
    Detokenizer detokenizer(*tokenizer, /*skip_special=*/true);
    std::vector<Piece> pieces;
    for (const int32_t id : tokenizer->encode(parser_case.text)) {
      pieces.push_back({.text = detokenizer.push(id), .tag = tags.of(id)});
    }
    pieces.push_back({.text = detokenizer.flush()});
    EXPECT_EQ(run_parser_case(parser_case, pieces, /*tags_in_text=*/false), parser_case.expected)
        << parser_case.name;
  }
}

}  // namespace
}  // namespace nibble
