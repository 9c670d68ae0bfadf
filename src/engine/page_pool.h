// PagePool: who holds which page of the latent cache. A page is free, held by one or more
// sequences, or idle: held by none, but still findable by the prefix cache until it is needed.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <vector>

namespace nibble {

class PagePool {
 public:
  explicit PagePool(int64_t num_pages);

  int64_t num_pages() const { return int64_t(pages_.size()); }
  int64_t num_held() const { return num_held_; }
  // Pages that allocate() can still hand out: free ones, then the idle ones.
  int64_t num_available() const { return num_pages() - num_held_; }

  // A page with one holder: a free one, else the longest idle, after on_evict(page). Requires
  // num_available() > 0.
  int32_t allocate();
  // One more holder, of a held or idle page.
  void retain(int32_t page);
  // One holder less. The last one leaves the page idle when it is cached, free otherwise.
  void release(int32_t page);

  // Whether the prefix cache can find the page. Uncaching an idle page frees it.
  void set_cached(int32_t page, bool cached);

  // The page's content is about to be lost.
  std::function<void(int32_t page)> on_evict{};

 private:
  struct Page {
    int holders = 0;
    bool cached = false;
    std::list<int32_t>::iterator idle_position{};
  };

  std::vector<Page> pages_;
  std::vector<int32_t> free_;
  std::list<int32_t> idle_;  // longest idle first
  int64_t num_held_ = 0;
};

}  // namespace nibble
