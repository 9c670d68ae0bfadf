#include "engine/page_pool.h"

#include "base/check.h"

namespace nibble {

PagePool::PagePool(int64_t num_pages) : pages_(size_t(num_pages)) {
  for (int64_t page = num_pages; page-- > 0;) free_.push_back(int32_t(page));
}

int32_t PagePool::allocate() {
  CHECK(num_available() > 0);
  int32_t page;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
  } else {
    page = idle_.front();
    idle_.pop_front();
    pages_[size_t(page)].cached = false;
    if (on_evict) on_evict(page);
  }
  pages_[size_t(page)].holders = 1;
  ++num_held_;
  return page;
}

void PagePool::retain(int32_t page) {
  Page& p = pages_[size_t(page)];
  if (p.holders++ > 0) return;
  CHECK(p.cached, "page %d is free", page);
  idle_.erase(p.idle_position);
  ++num_held_;
}

void PagePool::release(int32_t page) {
  Page& p = pages_[size_t(page)];
  CHECK(p.holders > 0, "page %d has no holder", page);
  if (--p.holders > 0) return;
  --num_held_;
  if (p.cached) {
    p.idle_position = idle_.insert(idle_.end(), page);
  } else {
    free_.push_back(page);
  }
}

void PagePool::set_cached(int32_t page, bool cached) {
  Page& p = pages_[size_t(page)];
  if (p.cached == cached) return;
  p.cached = cached;
  if (p.holders > 0) return;
  CHECK(!cached, "page %d is free", page);
  idle_.erase(p.idle_position);
  free_.push_back(page);
}

}  // namespace nibble
