// Tokenizer: text <-> token ids, as the checkpoint's tokenizer.json says (Hugging Face tokenizers
// behind it). Immutable; any thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

class Tokenizer {
 public:
  // Throws Error that names the file: missing, not a tokenizer, broken merges, not byte-level.
  static std::unique_ptr<Tokenizer> load(const std::filesystem::path& folder);
  static std::unique_ptr<Tokenizer> parse(const std::string& name, const std::string& json);
  ~Tokenizer();

  // Added tokens in the text become their ids; nothing is put around it. Invalid UTF-8 reads as
  // U+FFFD. Throws ApiError 400 when the tokenizer's pattern gives up on the text.
  std::vector<int32_t> encode(std::string_view text) const;
  // The same, but no added token is found in the text: for untrusted text.
  std::vector<int32_t> encode_plain(std::string_view text) const;

  int vocab_size() const;  // ids are 0 .. vocab_size() - 1
  // The bytes a token stands for: often not whole characters. U+FFFD for ids outside, which a
  // model may have beyond the tokenizer's.
  std::string_view bytes(int32_t id) const;
  bool is_added(int32_t id) const;    // one of added_tokens
  bool is_special(int32_t id) const;  // added with special = true: left out of decoded text
  std::optional<int32_t> added_token(std::string_view content) const;
  const std::vector<std::string>& added_tokens() const;  // contents, longest first
  int longest_token_bytes() const;

  // Whole-text decoding: broken UTF-8 becomes U+FFFD.
  std::string decode(const std::vector<int32_t>& ids, bool skip_special) const;

 private:
  Tokenizer();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
