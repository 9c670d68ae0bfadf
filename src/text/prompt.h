// A chat request's prompt: rendered, and encoded so that text of messages cannot act as markup.
// Wherever a string of the request spells an added token, that spelling is broken by a private-use
// character before rendering; the rendered text is then split at the template's own tokens, the
// character taken out, and the pieces between encoded without added tokens. Texts that spell a
// token only when joined are kept apart the same way.
//
// Kept as they are: <think> and </think> in the string content of an assistant message, since
// templates find its thoughts by them. An added token of a single character cannot be broken; it is
// text wherever it stands.
#pragma once

#include <string>
#include <vector>

#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace nibble {

struct Prompt {
  std::string text{};  // as rendered, without the private-use characters
  std::vector<int32_t> ids{};
};

// `parse_special_tokens`: text that spells a special token becomes that token (vLLM's behaviour).
// Throws ApiError as ChatTemplate::render does.
Prompt render_prompt(const ChatTemplate& chat_template, const Tokenizer& tokenizer,
                     const RenderRequest& request, bool parse_special_tokens);

}  // namespace nibble
