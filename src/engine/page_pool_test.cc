#include "engine/page_pool.h"

#include <gtest/gtest.h>

#include <set>

namespace nibble {
namespace {

TEST(PagePool, HandsOutEveryPageOnce) {
  PagePool pool(5);
  std::set<int32_t> pages;
  for (int i = 0; i < 5; ++i) pages.insert(pool.allocate());
  EXPECT_EQ(pages.size(), 5u);
  EXPECT_EQ(pool.num_available(), 0);
  pool.release(3);
  EXPECT_EQ(pool.num_available(), 1);
  EXPECT_EQ(pool.allocate(), 3);
}

TEST(PagePool, CachedPagesStayFindableUntilNeeded) {
  PagePool pool(3);
  std::vector<int32_t> evicted;
  pool.on_evict = [&](int32_t page) { evicted.push_back(page); };
  const int32_t a = pool.allocate(), b = pool.allocate(), c = pool.allocate();
  pool.set_cached(a, true);
  pool.set_cached(b, true);
  for (const int32_t page : {b, a, c}) pool.release(page);
  EXPECT_EQ(pool.num_available(), 3);
  EXPECT_EQ(pool.allocate(), c);  // the free one first
  EXPECT_TRUE(evicted.empty());
  pool.retain(b);  // a hit
  EXPECT_EQ(pool.allocate(), a);
  EXPECT_EQ(evicted, std::vector<int32_t>{a});
  EXPECT_EQ(pool.num_available(), 0);
}

TEST(PagePool, TheLongestIdleIsEvictedFirst) {
  PagePool pool(3);
  std::vector<int32_t> evicted;
  pool.on_evict = [&](int32_t page) { evicted.push_back(page); };
  for (int i = 0; i < 3; ++i) pool.set_cached(pool.allocate(), true);
  for (const int32_t page : {1, 2, 0}) pool.release(page);
  for (int i = 0; i < 3; ++i) pool.allocate();
  EXPECT_EQ(evicted, (std::vector<int32_t>{1, 2, 0}));
}

TEST(PagePool, HoldersShareAPage) {
  PagePool pool(1);
  const int32_t page = pool.allocate();
  pool.retain(page);
  pool.release(page);
  EXPECT_EQ(pool.num_held(), 1);
  pool.release(page);
  EXPECT_EQ(pool.num_held(), 0);
}

TEST(PagePool, UncachingAnIdlePageFreesIt) {
  PagePool pool(1);
  int evictions = 0;
  pool.on_evict = [&](int32_t) { ++evictions; };
  pool.set_cached(pool.allocate(), true);
  pool.release(0);
  pool.set_cached(0, false);
  EXPECT_EQ(pool.allocate(), 0);
  EXPECT_EQ(evictions, 0);
}

}  // namespace
}  // namespace nibble
