#include "text/prompt.h"

#include <array>
#include <bitset>
#include <string_view>

#include "base/error.h"
#include "base/utf8.h"
#include "text/request_json.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr char32_t kFirstPrivateUse = 0xE000;
constexpr size_t kNumPrivateUse = 0xF8FF - 0xE000 + 1;

// Calls `visit` with every string and every key below `value`.
template <typename Visit>
void for_each_string(const Json& value, const Visit& visit) {
  if (value.is_string()) visit(value.get_ref<const std::string&>());
  if (value.is_array()) {
    for (const Json& item : value) for_each_string(item, visit);
  }
  if (value.is_object()) {
    for (const auto& [key, item] : value.items()) {
      visit(key);
      for_each_string(item, visit);
    }
  }
}

// A private-use character, in UTF-8, that no string of the request contains.
std::string unused_character(const RenderRequest& request) {
  std::bitset<kNumPrivateUse> used;
  const auto note = [&used](const std::string& text) {
    for (size_t i = 0; i + 2 < text.size(); ++i) {
      const auto byte = [&](size_t k) { return static_cast<uint8_t>(text[i + k]); };
      const uint32_t code_point =
          (byte(0) & 0xFu) << 12 | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu);
      if ((byte(0) & 0xF0u) == 0xE0u && code_point - kFirstPrivateUse < kNumPrivateUse) {
        used.set(code_point - kFirstPrivateUse);
      }
    }
  };
  for_each_string(request.messages, note);
  for_each_string(request.tools, note);
  for_each_string(request.kwargs, note);
  for (size_t i = 0; i < kNumPrivateUse; ++i) {
    if (used[i]) continue;
    std::string character;
    append_code_point(kFirstPrivateUse + static_cast<char32_t>(i), character);
    return character;
  }
  throw ApiError(400, "messages use every private-use character from U+E000 to U+F8FF", "messages");
}

// Where added tokens are spelled. Tokens of a single character cannot be broken and stay text.
class Spellings {
 public:
  explicit Spellings(const Tokenizer& tokenizer) {
    for (const std::string& token : tokenizer.added_tokens()) {
      if (token.size() <= first_character_bytes(token)) continue;
      tokens_.push_back(token);
      starts_token_[static_cast<uint8_t>(token[0])] = true;
    }
  }

  // The longest token that `text` begins with, or nothing.
  std::string_view at_start(std::string_view text) const {
    if (text.empty() || !starts_token_[static_cast<uint8_t>(text[0])]) return {};
    for (const std::string_view token : tokens_) {
      if (text.starts_with(token)) return token;
    }
    return {};
  }

  // Whether more text could make `text` the beginning of a token.
  bool is_beginning(std::string_view text) const {
    if (text.empty() || !starts_token_[static_cast<uint8_t>(text[0])]) return false;
    for (const std::string_view token : tokens_) {
      if (token.size() > text.size() && token.starts_with(text)) return true;
    }
    return false;
  }

  static size_t first_character_bytes(std::string_view text) {
    size_t size = 1;
    while (size < text.size() && (static_cast<uint8_t>(text[size]) & 0xC0u) == 0x80u) ++size;
    return size;
  }

 private:
  std::vector<std::string_view> tokens_;  // longest first
  std::array<bool, 256> starts_token_{};
};

class Breaker {
 public:
  Breaker(const Spellings& spellings, std::string mark)
      : spellings_(spellings), mark_(std::move(mark)) {}

  Json broken(const Json& value) const {
    if (value.is_string()) return broken(value.get_ref<const std::string&>(), false);
    if (value.is_array()) {
      Json items = Json::array();
      for (const Json& item : value) items.push_back(broken(item));
      return items;
    }
    if (value.is_object()) {
      Json members = Json::object();
      for (const auto& [key, item] : value.items()) members[broken(key, false)] = broken(item);
      return members;
    }
    return value;
  }

  Json broken_messages(const Json& messages) const {
    Json result = broken(messages);
    if (!messages.is_array()) return result;
    for (size_t i = 0; i < messages.size(); ++i) {
      const Json& message = messages[i];
      if (!message.is_object() || message.value("role", Json()) != "assistant") continue;
      const auto content = message.find("content");
      if (content == message.end() || !content->is_string()) continue;
      result[i]["content"] = broken(content->get_ref<const std::string&>(), true);
    }
    return result;
  }

 private:
  // Every spelling gets the mark behind its first character; what the next piece of text could
  // complete to a token gets it at the end.
  std::string broken(const std::string& text, bool keep_think_tags) const {
    std::string result;
    bool open_end = false;
    for (size_t i = 0; i < text.size(); ++i) {
      result += text[i];
      const std::string_view rest = std::string_view(text).substr(i);
      const std::string_view token = spellings_.at_start(rest);
      open_end = open_end || spellings_.is_beginning(rest);
      if (token.empty() || (keep_think_tags && (token == "<think>" || token == "</think>")))
        continue;
      for (size_t k = 1; k < Spellings::first_character_bytes(token); ++k) result += text[++i];
      result += mark_;
    }
    return open_end ? result + mark_ : result;
  }

  const Spellings& spellings_;
  std::string mark_;
};

std::string without(std::string_view text, std::string_view mark) {
  std::string result;
  for (size_t end; (end = text.find(mark)) != std::string_view::npos;) {
    result += text.substr(0, end);
    text.remove_prefix(end + mark.size());
  }
  return result += text;
}

}  // namespace

Prompt render_prompt(const ChatTemplate& chat_template, const Tokenizer& tokenizer,
                     const RenderRequest& request, bool parse_special_tokens) {
  Prompt prompt;
  if (parse_special_tokens) {
    prompt.text = chat_template.render(request);
    prompt.ids = tokenizer.encode(prompt.text);
    return prompt;
  }
  check_depth(request);
  const std::string mark = unused_character(request);
  const Spellings spellings(tokenizer);
  const Breaker breaker(spellings, mark);
  RenderRequest broken = request;
  broken.messages = breaker.broken_messages(request.messages);
  broken.tools = breaker.broken(request.tools);
  broken.kwargs = breaker.broken(request.kwargs);

  const std::string rendered = chat_template.render(broken);
  size_t piece_start = 0;
  const auto encode_piece = [&](size_t end) {
    const std::string piece =
        without(std::string_view(rendered).substr(piece_start, end - piece_start), mark);
    const std::vector<int32_t> ids = tokenizer.encode_plain(piece);
    prompt.ids.insert(prompt.ids.end(), ids.begin(), ids.end());
    prompt.text += piece;
  };
  for (size_t i = 0; i < rendered.size();) {
    const std::string_view token = spellings.at_start(std::string_view(rendered).substr(i));
    if (token.empty()) {
      ++i;
      continue;
    }
    encode_piece(i);
    prompt.ids.push_back(*tokenizer.added_token(token));
    prompt.text += token;
    i += token.size();
    piece_start = i;
  }
  encode_piece(rendered.size());
  return prompt;
}

}  // namespace nibble
