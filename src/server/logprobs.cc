#include "server/logprobs.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "base/utf8.h"

namespace nibble {
namespace {

// JSON has no -Infinity; this is what vLLM writes.
float finite(float logprob) {
  return std::isfinite(logprob) ? logprob : -9999.0f;
}

std::string token_text(int32_t id, const LogprobStyle& style) {
  if (style.tokens_as_ids) return "token_id:" + std::to_string(id);
  std::string text;
  append_valid_utf8(style.tokenizer.bytes(id), false, text);
  return text;
}

void write_token(int32_t id, float logprob, const LogprobStyle& style, JsonWriter& writer) {
  writer.key("token").string(token_text(id, style));
  writer.key("logprob").number(finite(logprob));
  writer.key("bytes").begin_array();
  for (const char byte : style.tokenizer.bytes(id)) {
    writer.integer(static_cast<unsigned char>(byte));
  }
  writer.end_array();
}

int64_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

size_t top_count(const TokenLogprobs& logprobs, const LogprobStyle& style) {
  return std::min(logprobs.top.size(), size_t(style.top));
}

}  // namespace

void write_chat_logprob(const Token& token, const LogprobStyle& style, JsonWriter& writer) {
  const TokenLogprobs logprobs = token.logprobs.value_or(TokenLogprobs{});
  writer.begin_object();
  write_token(token.id, logprobs.logprob, style, writer);
  writer.key("top_logprobs").begin_array();
  for (size_t i = 0; i < top_count(logprobs, style); ++i) {
    writer.begin_object();
    write_token(logprobs.top[i].first, logprobs.top[i].second, style, writer);
    writer.end_object();
  }
  writer.end_array().end_object();
}

void CompletionLogprobs::add(int32_t id, const TokenLogprobs* logprobs) {
  const std::string text = token_text(id, style_);
  tokens_.string(text);
  offsets_.integer(offset_);
  offset_ += count_characters(text);
  if (!logprobs) {
    logprobs_.null();
    top_.null();
    return;
  }
  logprobs_.number(finite(logprobs->logprob));
  // Several tokens may spell the same text (parts of characters do): the likeliest stands.
  std::vector<std::string> written{text};
  top_.begin_object().text_key(text).number(finite(logprobs->logprob));
  for (size_t i = 0; i < top_count(*logprobs, style_); ++i) {
    const auto& [other_id, logprob] = logprobs->top[i];
    std::string other = token_text(other_id, style_);
    if (std::find(written.begin(), written.end(), other) != written.end()) continue;
    top_.text_key(other).number(finite(logprob));
    written.push_back(std::move(other));
  }
  top_.end_object();
}

void CompletionLogprobs::write(JsonWriter& writer) {
  writer.begin_object();
  writer.key("text_offset").begin_array().raw(offsets_.take()).end_array();
  writer.key("token_logprobs").begin_array().raw(logprobs_.take()).end_array();
  writer.key("tokens").begin_array().raw(tokens_.take()).end_array();
  writer.key("top_logprobs").begin_array().raw(top_.take()).end_array();
  writer.end_object();
}

void write_prompt_logprobs(const std::vector<int32_t>& prompt,
                           const std::vector<TokenLogprobs>& logprobs, const LogprobStyle& style,
                           JsonWriter& writer) {
  const auto write_entry = [&](int32_t id, float logprob, std::optional<size_t> rank) {
    writer.key(std::to_string(id)).begin_object();
    writer.key("logprob").number(finite(logprob));
    if (rank) writer.key("rank").integer(int64_t(*rank));
    writer.key("decoded_token").string(style.tokenizer.bytes(id));
    writer.end_object();
  };
  writer.key("prompt_logprobs").begin_array().null();
  for (size_t i = 0; i < logprobs.size() && i + 1 < prompt.size(); ++i) {
    const TokenLogprobs& entry = logprobs[i];
    const int32_t id = prompt[i + 1];
    writer.begin_object();
    std::optional<size_t> rank;
    for (size_t t = 0; t < entry.top.size(); ++t) {
      if (entry.top[t].first == id) rank = t + 1;
    }
    write_entry(id, entry.logprob, rank);
    for (size_t t = 0; t < top_count(entry, style); ++t) {
      if (entry.top[t].first != id) write_entry(entry.top[t].first, entry.top[t].second, t + 1);
    }
    writer.end_object();
  }
  writer.end_array();
}

}  // namespace nibble
