#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <numeric>

namespace nibble {
namespace {

TEST(ThreadPool, EveryShareRunsOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 2000; ++round) {
      std::vector<int> calls(size_t(threads), 0);
      pool.run([&](int share) { ++calls[size_t(share)]; });
      EXPECT_EQ(std::accumulate(calls.begin(), calls.end(), 0), threads);
    }
  }
}

TEST(ThreadPool, ParallelForCoversTheRange) {
  ThreadPool pool(3);
  for (const int64_t count : {0, 1, 2, 3, 7, 1000}) {
    std::vector<int> seen(size_t(count), 0);
    pool.parallel_for(count, [&](int64_t i) { ++seen[size_t(i)]; });
    for (const int n : seen) EXPECT_EQ(n, 1);
  }
}

TEST(ThreadPool, WakesWorkersThatSleep) {
  ThreadPool pool(2);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int> calls{0};
    pool.run([&](int) { ++calls; });
    EXPECT_EQ(calls.load(), 2);
  }
}

TEST(ThreadPool, ThereIsACore) {
  EXPECT_GE(num_physical_cores(), 1);
}

}  // namespace
}  // namespace nibble
