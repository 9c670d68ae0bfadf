#include "text/tokenizer.h"

#include <algorithm>
#include <unordered_map>

#include "base/error.h"
#include "base/mmap_file.h"
#include "base/utf8.h"
#include "text/bridge/error.h"

namespace nibble {
namespace {

struct TokenizerDeleter {
  void operator()(NibbleTokenizer* tokenizer) const { nibble_tokenizer_free(tokenizer); }
};

constexpr uint32_t kMaxVocabSize = 1u << 24;

}  // namespace

struct Tokenizer::Impl {
  std::unique_ptr<NibbleTokenizer, TokenizerDeleter> bridge;
  std::string bytes;             // of all tokens, one after the other, in the order they came
  std::vector<uint64_t> offset;  // [vocab_size] into bytes
  std::vector<uint32_t> size;    // [vocab_size]
  std::vector<uint32_t> flags;   // [vocab_size] of NibbleTokenFlags
  std::vector<std::string> added;
  std::unordered_map<std::string, int32_t> added_ids;
  int longest_token_bytes = 0;
  bool id_too_large = false;

  void add(uint32_t id, uint32_t token_flags, std::string_view token_bytes) {
    if (id >= kMaxVocabSize) {
      id_too_large = true;
      return;
    }
    if (id >= offset.size()) {
      offset.resize(id + 1, 0);
      size.resize(id + 1, 0);
      flags.resize(id + 1, 0);
    }
    offset[id] = bytes.size();
    size[id] = static_cast<uint32_t>(token_bytes.size());
    flags[id] = token_flags;
    bytes += token_bytes;
    longest_token_bytes = std::max(longest_token_bytes, static_cast<int>(token_bytes.size()));
    if (token_flags & kNibbleAdded) {
      added.emplace_back(token_bytes);
      added_ids.emplace(token_bytes, static_cast<int32_t>(id));
    }
  }

  bool has(int32_t id, uint32_t flag) const {
    return id >= 0 && static_cast<size_t>(id) < flags.size() && (flags[id] & flag) != 0;
  }

  std::vector<int32_t> encode(std::string_view text, bool plain) const {
    std::string repaired;
    if (!is_valid_utf8(text)) {
      append_valid_utf8(text, false, repaired);
      text = repaired;
    }
    std::vector<int32_t> ids;
    auto sink = [](void* target, const uint32_t* data, size_t num_ids) {
      static_cast<std::vector<int32_t>*>(target)->assign(data, data + num_ids);
    };
    BridgeError error;
    if (!nibble_tokenizer_encode(bridge.get(), text.data(), text.size(), plain, sink, &ids,
                                 &error.raw)) {
      throw ApiError(400, "The text cannot be tokenized: " + error.message);
    }
    return ids;
  }
};

Tokenizer::Tokenizer() : impl_(std::make_unique<Impl>()) {}
Tokenizer::~Tokenizer() = default;

std::unique_ptr<Tokenizer> Tokenizer::load(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer.json";
  const MmapFile file(path);
  return parse(path.string(), {reinterpret_cast<const char*>(file.data()), file.size()});
}

std::unique_ptr<Tokenizer> Tokenizer::parse(const std::string& name, const std::string& json) {
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer());
  Impl& impl = *tokenizer->impl_;
  BridgeError error;
  impl.bridge.reset(nibble_tokenizer_load(json.data(), json.size(), &error.raw));
  if (!impl.bridge) {
    throw Error(name + " is not a tokenizer that can be used: " + error.message);
  }
  auto sink = [](void* target, uint32_t id, uint32_t flags, const char* bytes, size_t size_bytes) {
    static_cast<Impl*>(target)->add(id, flags, {bytes, size_bytes});
  };
  if (!nibble_tokenizer_tokens(impl.bridge.get(), sink, &impl, &error.raw)) {
    throw Error(name + ": the tokens cannot be read: " + error.message);
  }
  if (impl.id_too_large || impl.offset.empty()) {
    throw Error(name + ": token ids have to be between 0 and " + std::to_string(kMaxVocabSize - 1) +
                ", with one token at least");
  }
  std::sort(impl.added.begin(), impl.added.end(), [](const std::string& a, const std::string& b) {
    return a.size() != b.size() ? a.size() > b.size() : a < b;
  });
  return tokenizer;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  return impl_->encode(text, false);
}

std::vector<int32_t> Tokenizer::encode_plain(std::string_view text) const {
  return impl_->encode(text, true);
}

int Tokenizer::vocab_size() const {
  return static_cast<int>(impl_->offset.size());
}

std::string_view Tokenizer::bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return "\uFFFD";
  return std::string_view(impl_->bytes).substr(impl_->offset[id], impl_->size[id]);
}

bool Tokenizer::is_added(int32_t id) const {
  return impl_->has(id, kNibbleAdded);
}
bool Tokenizer::is_special(int32_t id) const {
  return impl_->has(id, kNibbleSpecial);
}

std::optional<int32_t> Tokenizer::added_token(std::string_view content) const {
  const auto found = impl_->added_ids.find(std::string(content));
  if (found == impl_->added_ids.end()) return std::nullopt;
  return found->second;
}

const std::vector<std::string>& Tokenizer::added_tokens() const {
  return impl_->added;
}
int Tokenizer::longest_token_bytes() const {
  return impl_->longest_token_bytes;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids, bool skip_special) const {
  std::string raw;
  for (const int32_t id : ids) {
    if (!skip_special || !is_special(id)) raw += bytes(id);
  }
  std::string text;
  append_valid_utf8(raw, false, text);
  return text;
}

}  // namespace nibble
