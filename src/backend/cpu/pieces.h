// Pieces: the items of a loop, dealt to threads as they go.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace nibble {

// A contiguous share of a loop.
struct Share {
  int64_t first = 0;
  int64_t last = 0;

  bool empty() const { return first >= last; }
};

// Each thread takes pieces of its own contiguous share, from the front, so that it streams memory
// of its own; one that has none left takes them from the back of the others' shares, so that nobody
// waits for a core that is slower or was lost for a while.
class Pieces {
 public:
  explicit Pieces(int threads) : left_(size_t(threads)) {}

  // Deals `count` items in pieces of `piece`. While no thread takes any.
  void deal(int64_t count, int64_t piece) {
    count_ = count;
    piece_ = std::max<int64_t>(piece, 1);
    const int64_t pieces = (count + piece_ - 1) / piece_, threads = int64_t(left_.size());
    for (int64_t t = 0; t < threads; ++t) {
      left_[size_t(t)].range = range_of(pieces * t / threads, pieces * (t + 1) / threads);
    }
  }

  // The next piece of thread `thread`; an empty one when there are no more. By any thread.
  Share take(int thread) {
    const int threads = int(left_.size());
    for (int i = 0; i < threads; ++i) {
      std::atomic<uint64_t>& left = left_[size_t((thread + i) % threads)].range;
      uint64_t range = left.load(std::memory_order_relaxed);
      for (;;) {
        const uint32_t first = uint32_t(range >> 32), last = uint32_t(range);
        if (first >= last) break;
        const bool own = i == 0;
        const uint64_t rest = own ? range_of(first + 1, last) : range_of(first, last - 1);
        if (!left.compare_exchange_weak(range, rest, std::memory_order_relaxed)) continue;
        const int64_t begin = (own ? first : last - 1) * piece_;
        return {begin, std::min(count_, begin + piece_)};
      }
    }
    return {};
  }

 private:
  static uint64_t range_of(int64_t first, int64_t last) {
    return uint64_t(first) << 32 | uint64_t(last);
  }

  struct alignas(64) Left {
    std::atomic<uint64_t> range{0};  // of pieces: first, last
  };
  std::vector<Left> left_;
  int64_t count_ = 0, piece_ = 1;
};

}  // namespace nibble
