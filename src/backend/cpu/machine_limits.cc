#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/machine_limits.cc"
#include "backend/cpu/machine_limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "backend/cpu/memory.h"
#include "backend/cpu/multiply.h"
#include "hwy/foreach_target.h"  // before simd-inl.h
// clang-format off
#include "backend/cpu/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

// Sums `bytes` of memory, a multiple of 16 vectors; whole cache lines in order.
float read_all(const uint8_t* memory, int64_t bytes) {
  const float* x = reinterpret_cast<const float*>(memory);
  FloatVec sum[4] = {zero(), zero(), zero(), zero()};
  for (int64_t i = 0; i < bytes / 4; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sum[j] = hn::Add(sum[j], load(x + i + j * kLanes));
  }
  return sum_of_lanes(hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3])));
}

// `rounds` multiply-adds into each of 12 registers; returns a value that depends on all.
float multiply_add_registers(int64_t rounds, float factor) {
  FloatVec sum[12];
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) sum[i] = set(float(i));
  const FloatVec a = set(factor), b = set(0.5f);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) sum[i] = hn::MulAdd(sum[i], a, b);
  }
  FloatVec total = zero();
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) total = hn::Add(total, sum[i]);
  return sum_of_lanes(total);
}

int64_t flops_a_round() {
  return 12 * kLanes * 2;
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(read_all);
HWY_EXPORT(multiply_add_registers);
HWY_EXPORT(flops_a_round);

namespace {

constexpr int kRepetitions = 5;

// Seconds of the fastest of some runs of body(thread) on all threads.
template <typename Body>
double fastest_run(ThreadPool& pool, Body body) {
  double best = 1e30;
  for (int i = 0; i < kRepetitions; ++i) {
    const auto start = std::chrono::steady_clock::now();
    pool.run(body);
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace

double measure_read_bandwidth(ThreadPool& pool) {
  const int64_t share = std::max<int64_t>(int64_t(16) << 20, (int64_t(256) << 20) / pool.size());
  PageMemory memory(size_t(share * pool.size()));
  pool.run([&](int thread) { std::fill_n(memory.data() + thread * share, share, uint8_t(0)); });
  std::atomic<float> sink{0};
  const double seconds = fastest_run(pool, [&](int thread) {
    sink = HWY_DYNAMIC_DISPATCH(read_all)(memory.data() + thread * share, share);
  });
  return double(share) * pool.size() / seconds;
}

double measure_gemm_peak(ThreadPool& pool) {
  constexpr int64_t kRounds = 2'000'000;
  std::atomic<float> sink{0};
  const double seconds = fastest_run(
      pool, [&](int) { sink = HWY_DYNAMIC_DISPATCH(multiply_add_registers)(kRounds, 0.5f); });
  return double(kRounds * HWY_DYNAMIC_DISPATCH(flops_a_round)()) * pool.size() / seconds;
}

}  // namespace nibble
#endif
