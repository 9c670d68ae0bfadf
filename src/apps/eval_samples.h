// Texts whose tokens are counted by perplexity and divergence.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace nibble {

struct TextSample {
  std::string place{};  // "FILE:LINE" or "FILE, chunk N", for messages
  std::vector<int32_t> ids{};
  std::vector<int> counted{};  // rising positions of ids, none 0; predicted from those before
};

// Lines {"ids": [...], "spans": [[a, b], ...], ...}: the token i counts when a <= i < b of a span.
// Throws Error that names file and line.
std::vector<TextSample> load_chat_samples(const std::string& path, int vocab);

// The file as one text, in chunks of 512 tokens, each after [gMASK]<sop>; all 512 count, a short
// rest is left out. Throws Error that names the file.
std::vector<TextSample> load_prose_samples(const std::string& path, const Tokenizer& tokenizer);

}  // namespace nibble
