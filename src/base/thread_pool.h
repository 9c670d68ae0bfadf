// ThreadPool: one caller and n - 1 workers share loops. Made for many short loops a millisecond:
// workers spin briefly before they sleep, and a share whose worker is late (asleep, or without a
// core on a busy machine) is done by the caller.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace nibble {

// Physical cores that this process may run on, at least 1.
int num_physical_cores();

class ThreadPool {
 public:
  // `num_threads` counts the caller; workers are pinned only where cores are to spare.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return num_threads_; }

  // Calls body(share) once for each share 0 .. size() - 1 and returns when all have returned. The
  // caller does share 0, worker t share t, unless it is late. One caller at a time; not from inside
  // a body.
  template <typename Body>
  void run(Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_erased([](void* b, int share) { (*static_cast<Plain*>(b))(share); },
               const_cast<void*>(static_cast<const void*>(&body)));
  }

  // Calls body(i) for each i in [0, count), in size() contiguous shares.
  template <typename Body>
  void parallel_for(int64_t count, Body&& body) {
    if (count <= 1 || num_threads_ == 1) {
      for (int64_t i = 0; i < count; ++i) body(i);
      return;
    }
    run([&](int share) {
      const int64_t first = count * share / num_threads_;
      const int64_t last = count * (share + 1) / num_threads_;
      for (int64_t i = first; i < last; ++i) body(i);
    });
  }

 private:
  using Function = void (*)(void* body, int share);
  // The loop that a share was last taken for: whoever moves it on does the share.
  struct alignas(64) Claim {
    std::atomic<uint32_t> generation{0};
  };

  void run_erased(Function function, void* body);
  bool try_share(int share, uint32_t generation);
  void work(int thread);

  const int num_threads_;
  std::vector<Claim> claims_;
  std::vector<std::thread> workers_;
  Function function_ = nullptr;
  void* body_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> remaining_{0};  // shares of the loop that are not done
  std::atomic<bool> stopping_{false};
  std::atomic<int> sleeping_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace nibble
