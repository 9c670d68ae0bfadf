// What backend_bench's rows have in common, and the files they come from. One thread.
#pragma once

#include <benchmark/benchmark.h>

#include <functional>
#include <initializer_list>
#include <string>

#include "backend/backend.h"
#include "backend/cases.h"

namespace nibble {

// What shares are of: measured once, before the rows are run.
inline MachineLimits bench_limits;

// Reports what an iteration reads (bytes of weights or records as stored) and multiplies
// (operations, two a multiply-add): B/s, FLOP/s, and their shares of bench_limits.
void count(benchmark::State& state, double bytes, double flops);

template <typename Body>
void add_row(const std::string& name, Body body) {
  benchmark::RegisterBenchmark(name.c_str(), body)->Unit(benchmark::kMicrosecond)->UseRealTime();
}

std::string dims(std::initializer_list<int64_t> values);  // "1x48x4"

// What memory holds beyond any cache, in copies of `bytes`, at most `most`.
int64_t copies_beyond_caches(int64_t bytes, int64_t most = 64);

// Reports the seconds of each of an iteration's runs.
void report_each(benchmark::State& state, int64_t runs);

// Records run(copy) for each copy and times the replay of them all, an iteration; reports the
// seconds of each. `out` is what the last of them leaves.
void replay_copies(benchmark::State& state, Backend& backend, int64_t copies, const Tensor& out,
                   const std::function<void(int64_t)>& run);

// The case's attention, a call an iteration.
void add_attention_row(Backend& backend, const AttentionCase& c);

// The rows named wide: every operation at the widths of GLM-4.7-Flash REAP-23B (a layer's matrices,
// the dense layer's, the head), recorded once and replayed, over as many copies of its weights as
// keep them out of the caches. An iteration is all copies, `each` one.
void add_wide_rows(Backend& backend);
void add_wide_attention_rows(Backend& backend);

}  // namespace nibble
