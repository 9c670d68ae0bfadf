#include "text/detokenizer.h"

#include "base/utf8.h"

namespace nibble {

std::string Detokenizer::push(int32_t id) {
  if (skip_special_ && tokenizer_.is_special(id)) return {};
  held_ += tokenizer_.bytes(id);
  std::string piece;
  held_.erase(0, append_valid_utf8(held_, true, piece));
  return piece;
}

std::string Detokenizer::flush() {
  std::string piece;
  append_valid_utf8(held_, false, piece);
  held_.clear();
  return piece;
}

}  // namespace nibble
