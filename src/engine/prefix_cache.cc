#include "engine/prefix_cache.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <random>

namespace nibble {

PrefixCache::PrefixCache(PagePool& pool, int page_size) : pool_(pool), page_size_(page_size) {
  std::random_device random;
  for (size_t i = 0; i < secret_.size(); i += sizeof(uint32_t)) {
    const uint32_t word = random();
    std::memcpy(secret_.data() + i, &word, sizeof(word));
  }
  pool_.on_evict = [this](int32_t page) {
    entries_.erase(key_of_page_.at(page));
    key_of_page_.erase(page);
  };
}

PrefixCache::Key PrefixCache::root(std::string_view salt) const {
  const XXH128_hash_t hash =
      XXH3_128bits_withSecret(salt.data(), salt.size(), secret_.data(), secret_.size());
  return {hash.low64, hash.high64};
}

PrefixCache::Key PrefixCache::next(const Key& previous,
                                   std::span<const int32_t> page_tokens) const {
  std::vector<uint8_t> bytes(sizeof(Key) + page_tokens.size_bytes());
  std::memcpy(bytes.data(), &previous, sizeof(Key));
  std::memcpy(bytes.data() + sizeof(Key), page_tokens.data(), page_tokens.size_bytes());
  const XXH128_hash_t hash =
      XXH3_128bits_withSecret(bytes.data(), bytes.size(), secret_.data(), secret_.size());
  return {hash.low64, hash.high64};
}

std::vector<int32_t> PrefixCache::find(std::string_view salt, std::span<const int32_t> tokens,
                                       int max_pages, std::vector<Key>& keys) {
  std::vector<int32_t> pages;
  Key key = root(salt);
  while (int(pages.size()) < max_pages) {
    const size_t first = pages.size() * size_t(page_size_);
    if (first + size_t(page_size_) > tokens.size()) break;
    const auto page_tokens = tokens.subspan(first, size_t(page_size_));
    key = next(key, page_tokens);
    const auto entry = entries_.find(key);
    if (entry == entries_.end()) break;
    if (!std::ranges::equal(entry->second.tokens, page_tokens)) break;
    pool_.retain(entry->second.page);
    pages.push_back(entry->second.page);
    keys.push_back(key);
  }
  return pages;
}

void PrefixCache::publish(int32_t page, const Key& key, std::span<const int32_t> page_tokens) {
  if (key_of_page_.contains(page)) return;
  const auto [entry, added] = entries_.try_emplace(
      key, Entry{.page = page, .tokens = {page_tokens.begin(), page_tokens.end()}});
  if (!added) return;
  key_of_page_.emplace(page, key);
  pool_.set_cached(page, true);
}

void PrefixCache::clear() {
  for (const auto& [page, key] : key_of_page_) pool_.set_cached(page, false);
  key_of_page_.clear();
  entries_.clear();
}

}  // namespace nibble
