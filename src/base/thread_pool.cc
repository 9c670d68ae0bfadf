#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <set>
#include <string>
#include <utility>

namespace nibble {
namespace {

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// About as long as the gap between two loops of one decode step, so that workers sleep only when
// the engine itself waits.
constexpr auto kSpinTime = std::chrono::microseconds(100);

// Spins until done() or the spin time is over; whether it is done.
template <typename Done>
bool spin_until(Done done) {
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  for (;;) {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause_cpu();
    }
    if (std::chrono::steady_clock::now() > deadline) return done();
  }
}

int topology_id(int cpu, const char* what) {
  std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/" + what);
  int id = -1;
  file >> id;
  return file ? id : -1;
}

}  // namespace

int num_physical_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
    return std::max(1, int(std::thread::hardware_concurrency()));
  }
  std::set<std::pair<int, int>> cores;
  int unknown = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const int core = topology_id(cpu, "core_id");
    if (core < 0) {
      ++unknown;
    } else {
      cores.insert({topology_id(cpu, "physical_package_id"), core});
    }
  }
  return std::max(1, int(cores.size()) + unknown);
}

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(std::max(1, num_threads)), claims_(size_t(num_threads_)) {
  for (int t = 1; t < num_threads_; ++t) workers_.emplace_back([this, t] { work(t); });
  // With no core to spare, the other threads of the process would queue behind a pinned worker.
  const int cores = int(std::thread::hardware_concurrency());
  if (cores <= num_threads_ + 1) return;
  for (int t = 1; t < num_threads_; ++t) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(t, &set);
    pthread_setaffinity_np(workers_[size_t(t - 1)].native_handle(), sizeof(set), &set);
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stopping_.store(true);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_erased(Function function, void* body) {
  if (num_threads_ == 1) return function(body, 0);
  function_ = function;
  body_ = body;
  remaining_.store(num_threads_, std::memory_order_relaxed);
  const uint32_t generation = generation_.fetch_add(1) + 1;  // publishes function and body
  if (sleeping_.load() > 0) {
    std::lock_guard lock(mutex_);
    wake_.notify_all();
  }
  for (int share = 0; share < num_threads_; ++share) {
    // Workers that are awake have their shares by the time that the caller has done its own.
    try_share(share, generation);
  }
  // A worker that lost its core in the middle of its share may need a while.
  const auto done = [this] { return remaining_.load(std::memory_order_acquire) == 0; };
  while (!spin_until(done)) std::this_thread::yield();
}

// Does the share unless another thread has it. A claim can only succeed while the loop of that
// generation is running, since the loop does not end before all its shares are claimed and done.
bool ThreadPool::try_share(int share, uint32_t generation) {
  std::atomic<uint32_t>& claimed = claims_[size_t(share)].generation;
  uint32_t last = claimed.load(std::memory_order_acquire);
  if (last == generation || generation_.load(std::memory_order_acquire) != generation) return false;
  if (!claimed.compare_exchange_strong(last, generation)) return false;
  function_(body_, share);
  remaining_.fetch_sub(1, std::memory_order_release);
  return true;
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  const auto changed = [&] {
    return generation_.load(std::memory_order_acquire) != seen || stopping_.load();
  };
  for (;;) {
    if (!spin_until(changed)) {
      std::unique_lock lock(mutex_);
      sleeping_.fetch_add(1);
      wake_.wait(lock, changed);
      sleeping_.fetch_sub(1);
    }
    if (stopping_.load()) return;
    seen = generation_.load(std::memory_order_acquire);
    try_share(thread, seen);
  }
}

}  // namespace nibble
