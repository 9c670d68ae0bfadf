// Log-probabilities in the shapes of OpenAI's answers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/token_stream.h"
#include "server/json_writer.h"
#include "text/tokenizer.h"

namespace nibble {

struct LogprobStyle {
  const Tokenizer& tokenizer;
  int top = 0;                 // alternatives of each token
  bool tokens_as_ids = false;  // "token_id:42" for the token's text
};

// One entry of a chat's logprobs.content: {token, logprob, bytes, top_logprobs}.
void write_chat_logprob(const Token& token, const LogprobStyle& style, JsonWriter& writer);

// {text_offset, token_logprobs, tokens, top_logprobs} of a completion, offsets in characters.
class CompletionLogprobs {
 public:
  explicit CompletionLogprobs(LogprobStyle style) : style_(style) {}

  // `logprobs` null: unknown, as of a prompt's first token.
  void add(int32_t id, const TokenLogprobs* logprobs);
  // What was added since the last write; offsets go on.
  void write(JsonWriter& writer);

 private:
  LogprobStyle style_;
  int64_t offset_ = 0;
  JsonWriter offsets_, logprobs_, tokens_, top_;
};

// "prompt_logprobs": [null, {"id": {"logprob", "rank", "decoded_token"}, ...}, ...], as vLLM has
// it. The rank is known of the best only.
void write_prompt_logprobs(const std::vector<int32_t>& prompt,
                           const std::vector<TokenLogprobs>& logprobs, const LogprobStyle& style,
                           JsonWriter& writer);

}  // namespace nibble
