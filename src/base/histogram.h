// Histogram: counts by upper bound, as Prometheus has them. One writer, any readers, no locks.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

class Histogram {
 public:
  // `bounds`: rising upper bounds, of static storage duration; +Inf is implied.
  explicit Histogram(std::span<const double> bounds)
      : bounds_(bounds), counts_(bounds.size() + 1) {}

  void observe(double value) {
    size_t i = 0;
    while (i < bounds_.size() && value > bounds_[i]) ++i;
    counts_[i].fetch_add(1, std::memory_order_relaxed);
    sum_.store(sum_.load(std::memory_order_relaxed) + value, std::memory_order_relaxed);
  }

  std::span<const double> bounds() const { return bounds_; }
  // Of bucket i alone (not cumulated), i <= bounds().size().
  int64_t count(size_t i) const { return counts_[i].load(std::memory_order_relaxed); }
  double sum() const { return sum_.load(std::memory_order_relaxed); }

 private:
  std::span<const double> bounds_;
  std::vector<std::atomic<int64_t>> counts_;
  std::atomic<double> sum_{0};
};

// vLLM's bucket bounds; the token times have finer ones besides.
inline constexpr double kTimeToFirstTokenBuckets[] = {.001, .005, .01, .02, .04, .06, .08, .1,
                                                      .25,  .5,   .75, 1,   2.5, 5,   7.5, 10,
                                                      20,   40,   80,  160, 640, 2560};
inline constexpr double kTokenTimeBuckets[] = {.001, .0025, .005, .01, .025, .05, .075, .1,
                                               .15,  .2,    .3,   .4,  .5,   .75, 1,    2.5,
                                               5,    7.5,   10,   20,  40,   80};
inline constexpr double kRequestTimeBuckets[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                                 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
inline constexpr double kIterationTokenBuckets[] = {1,   8,    16,   32,   64,   128,  256,
                                                    512, 1024, 2048, 4096, 8192, 16384};
inline constexpr double kTokenCountBuckets[] = {
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};

}  // namespace nibble
