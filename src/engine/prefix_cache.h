// PrefixCache: finds full pages by the tokens that led to them. A page's key is a hash chained over
// all pages before it:
//
//   key(page i) = XXH3-128(secret, key(page i-1), tokens of page i),   key(-1) from the salt
//
// The secret is random per process, and a hit compares the page's tokens: a client can neither
// predict nor forge a key.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/page_pool.h"

namespace nibble {

class PrefixCache {
 public:
  struct Key {
    uint64_t low = 0, high = 0;
    bool operator==(const Key&) const = default;
  };

  // Sets pool.on_evict. The pool must outlive the cache.
  PrefixCache(PagePool& pool, int page_size);

  Key root(std::string_view salt) const;
  Key next(const Key& previous, std::span<const int32_t> page_tokens) const;

  // The longest cached run of full pages of `tokens`, at most `max_pages`, each retained for the
  // caller; their keys are appended to `keys`.
  std::vector<int32_t> find(std::string_view salt, std::span<const int32_t> tokens, int max_pages,
                            std::vector<Key>& keys);

  // Makes a full page findable under `key`, unless another page already is.
  void publish(int32_t page, const Key& key, std::span<const int32_t> page_tokens);

  // Forgets everything; pages that nobody holds become free.
  void clear();

 private:
  struct KeyHash {
    size_t operator()(const Key& key) const { return key.low; }
  };
  struct Entry {
    int32_t page = 0;
    std::vector<int32_t> tokens{};
  };

  PagePool& pool_;
  const int page_size_;
  std::array<uint8_t, 192> secret_;
  std::unordered_map<Key, Entry, KeyHash> entries_;
  std::unordered_map<int32_t, Key> key_of_page_;
};

}  // namespace nibble
