#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/machine_limits.cc"
#include "backend/cpu/machine_limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "backend/cpu/instruction_sets.h"
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

// Floating-point operations of `rounds` rounds of multiply-adds from registers alone. `result`
// keeps the compiler from leaving them out.
double multiply_add_registers(int64_t rounds, float& result) {
  constexpr int kSums = 12;
  FloatVec sum[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) sum[i] = set(float(i));
  const FloatVec half = in_register(set(0.5f));
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sum[i] = in_register(hn::MulAdd(sum[i], half, half));
  }
  FloatVec total = zero();
  for (int i = 0; i < kSums; ++i) total = hn::Add(total, sum[i]);
  result = sum_of_lanes(total);
  return double(rounds) * kSums * kLanes * 2;
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(read_all);
HWY_EXPORT(multiply_add_registers);

namespace {

constexpr int kRepetitions = 5;

double compute_from_registers(int64_t rounds, float& result) {
#if defined(__x86_64__)
  result = 0;
  const InstructionSets sets = instruction_sets();
  if (sets.amx_bf16) return dot_registers_amx(rounds);
  if (sets.fast_avx512bf16) return dot_registers_avx512bf16(rounds);
#endif
  return HWY_DYNAMIC_DISPATCH(multiply_add_registers)(rounds, result);
}

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
  std::atomic<double> flops{0};
  std::atomic<float> sink{0};
  const double seconds = fastest_run(pool, [&](int) {
    float result = 0;
    flops = compute_from_registers(kRounds, result);
    sink = result;
  });
  return flops * pool.size() / seconds;
}

}  // namespace nibble
#endif
