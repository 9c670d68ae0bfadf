// BoundedQueue: many producers, one consumer. With TokenStream the only channels between threads.
#pragma once

#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

namespace nibble {

template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  // False, and `item` as it was, when the queue is full or closed.
  bool try_push(T&& item) {
    {
      std::lock_guard lock(mutex_);
      if (closed_ || items_.size() >= capacity_) return false;
      items_.push_back(std::move(item));
    }
    arrived_.notify_one();
    return true;
  }

  // Everything that is there, oldest first; never waits.
  std::vector<T> pop_all() {
    std::lock_guard lock(mutex_);
    return std::exchange(items_, {});
  }

  // Waits until something is there, the queue is closed, or wake() is called.
  void wait() {
    std::unique_lock lock(mutex_);
    arrived_.wait(lock, [this] { return !items_.empty() || closed_ || woken_; });
    woken_ = false;
  }

  void wake() {
    {
      std::lock_guard lock(mutex_);
      woken_ = true;
    }
    arrived_.notify_one();
  }

  // No push succeeds from now on.
  void close() {
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
    }
    arrived_.notify_one();
  }

 private:
  const size_t capacity_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<T> items_;
  bool closed_ = false;
  bool woken_ = false;
};

}  // namespace nibble
