// Detokenizer: one stream's tokens -> UTF-8 pieces, never half a character. The pieces joined are
// Tokenizer::decode of all ids.
#pragma once

#include <string>

#include "text/tokenizer.h"

namespace nibble {

class Detokenizer {
 public:
  // The tokenizer must outlive it.
  Detokenizer(const Tokenizer& tokenizer, bool skip_special)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}

  // The text that became certain with this token; incomplete characters are held back.
  std::string push(int32_t id);
  // What is still held, incomplete characters as U+FFFD.
  std::string flush();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  std::string held_;
};

}  // namespace nibble
