// TagIds: which token of a vocabulary is which tag of the output parser.
#pragma once

#include <map>

#include "text/output_parser.h"
#include "text/tokenizer.h"

namespace nibble {

class TagIds {
 public:
  explicit TagIds(const Tokenizer& tokenizer) {
    for (size_t i = 1; i < std::size(kTagNames); ++i) {
      if (const auto id = tokenizer.added_token(kTagNames[i])) tags_.emplace(*id, Tag(i));
    }
  }

  // Tag::kNone for a token that is text.
  Tag of(int32_t id) const {
    const auto found = tags_.find(id);
    return found == tags_.end() ? Tag::kNone : found->second;
  }

 private:
  std::map<int32_t, Tag> tags_;
};

}  // namespace nibble
