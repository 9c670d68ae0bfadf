#include "engine/prefix_cache.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

class PrefixCacheTest : public testing::Test {
 protected:
  // Computes the full pages of `tokens`, publishes and releases them.
  void fill(const std::vector<int32_t>& tokens, std::string_view salt = "") {
    PrefixCache::Key key = cache_.root(salt);
    for (size_t i = 0; i + 4 <= tokens.size(); i += 4) {
      const std::span<const int32_t> page_tokens(tokens.data() + i, 4);
      key = cache_.next(key, page_tokens);
      const int32_t page = pool_.allocate();
      cache_.publish(page, key, page_tokens);
      pool_.release(page);
    }
  }
  std::vector<int32_t> find(const std::vector<int32_t>& tokens, std::string_view salt = "",
                            int max_pages = 100) {
    std::vector<PrefixCache::Key> keys;
    auto pages = cache_.find(salt, tokens, max_pages, keys);
    EXPECT_EQ(keys.size(), pages.size());
    for (const int32_t page : pages) pool_.release(page);
    return pages;
  }
  PagePool pool_{8};
  PrefixCache cache_{pool_, 4};
};

TEST_F(PrefixCacheTest, FindsTheLongestRunOfFullPages) {
  fill({1, 2, 3, 4, 5, 6, 7, 8, 9});
  EXPECT_EQ(find({1, 2, 3, 4, 5, 6, 7, 8, 9}), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(find({1, 2, 3, 4, 5, 6, 7, 8}, "", 1), (std::vector<int32_t>{0}));
  EXPECT_EQ(find({1, 2, 3, 4, 9, 9, 9, 9}), (std::vector<int32_t>{0}));
  EXPECT_TRUE(find({5, 6, 7, 8}).empty());  // the same page behind another prefix
  EXPECT_TRUE(find({1, 2, 3}).empty());
}

TEST_F(PrefixCacheTest, SaltsKeepClientsApart) {
  fill({1, 2, 3, 4}, "alice");
  EXPECT_TRUE(find({1, 2, 3, 4}).empty());
  EXPECT_TRUE(find({1, 2, 3, 4}, "bob").empty());
  EXPECT_EQ(find({1, 2, 3, 4}, "alice").size(), 1u);
}

TEST_F(PrefixCacheTest, KeysDifferBetweenProcesses) {
  PagePool pool(1);
  const PrefixCache other(pool, 4);
  EXPECT_NE(other.root(""), cache_.root(""));
}

TEST_F(PrefixCacheTest, EvictedPagesAreForgotten) {
  fill({1, 2, 3, 4});
  for (int i = 0; i < 8; ++i) pool_.allocate();
  EXPECT_TRUE(find({1, 2, 3, 4}).empty());
}

TEST_F(PrefixCacheTest, ASecondPageOfTheSameTokensStaysPrivate) {
  fill({1, 2, 3, 4});
  const int32_t held = find({1, 2, 3, 4})[0];
  fill({1, 2, 3, 4});
  EXPECT_EQ(find({1, 2, 3, 4})[0], held);
}

TEST_F(PrefixCacheTest, ClearForgetsEverything) {
  fill({1, 2, 3, 4, 5, 6, 7, 8});
  cache_.clear();
  EXPECT_TRUE(find({1, 2, 3, 4}).empty());
  EXPECT_EQ(pool_.num_available(), 8);
}

}  // namespace
}  // namespace nibble
