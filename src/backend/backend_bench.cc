// The cases of backend_test, timed: time, B/s of weights or cache records as stored, FLOP/s, and
// their shares of what the machine can do at best, which the context lines give.
//
//   backend_bench --benchmark_filter=linear
//   backend_bench --device=cuda --benchmark_filter=wide
//   backend_bench --threads=2 --benchmark_filter=wide
//
// On a card a row is one operation's launch and wait, other than those named wide (bench.h).
#include <benchmark/benchmark.h>

#include <algorithm>
#include <iostream>
#include <string_view>

#include "backend/bench.h"
#include "backend/cases.h"
#include "backend/create.h"

namespace nibble {
namespace {

using benchmark::State;

std::string format_name(Format format, bool input_scales) {
  constexpr const char* kNames[] = {"f32", "bf16", "nvfp4", "fp8", "int4"};
  return std::string(kNames[size_t(format)]) + (input_scales ? "+input_scales" : "");
}

void linear(State& state, Backend& backend, const LinearCase& c) {
  std::mt19937 random(1);
  const Weight w = backend.upload(
      random_weight("w", Use::kLinear, c.format, 1, c.outputs, c.inputs, random, c.input_scales));
  const DType dtype = backend.activation_dtype();
  DeviceMatrix x(backend, c.rows, c.inputs, random_floats(c.rows * c.inputs, random), dtype);
  DeviceMatrix out(backend, c.rows, c.outputs, dtype);
  for (auto _ : state) backend.linear(x.tensor(), w, out.tensor(), c.accumulate);
  count(state, double(storage_bytes(w)), 2.0 * double(c.rows * c.outputs * c.inputs));
}

void experts(State& state, Backend& backend, const ExpertsCase& c) {
  std::mt19937 random(1);
  const Weight gate_up =
      backend.upload(random_weight("gate_up", Use::kGatedExperts, c.format, c.num_experts,
                                   2 * c.width, c.hidden, random, c.input_scales));
  const Weight down = backend.upload(random_weight("down", Use::kExperts, c.format, c.num_experts,
                                                   c.hidden, c.width, random, c.input_scales));
  const DType dtype = backend.activation_dtype();
  DeviceMatrix x(backend, c.rows, c.hidden, random_floats(c.rows * c.hidden, random), dtype);
  DeviceMatrix ids(backend, c.rows, c.top_k, DType::kI32);
  DeviceMatrix out(backend, c.rows, c.hidden, dtype);
  DeviceMatrix weights(backend, c.rows, c.top_k,
                       std::vector<float>(size_t(c.rows * c.top_k), 0.25f));
  std::vector<int32_t> chosen(size_t(c.rows * c.top_k));
  for (size_t i = 0; i < chosen.size(); ++i) chosen[i] = int32_t(i * 7 % size_t(c.num_experts));
  backend.write(ids.tensor().data, chosen.data(), chosen.size() * sizeof(int32_t));
  for (auto _ : state) {
    backend.experts(x.tensor(), {ids.tensor(), weights.tensor()}, gate_up, down, out.tensor());
  }
  const int64_t pairs = c.rows * c.top_k, read = std::min<int64_t>(pairs, c.num_experts);
  count(state, double(read * (storage_bytes(gate_up) + storage_bytes(down)) / c.num_experts),
        6.0 * double(pairs * c.width * c.hidden));
}

void sample(State& state, Backend& backend, int64_t rows, int64_t vocab, const SampleRow& row) {
  std::mt19937 random(1);
  DeviceMatrix logits(backend, rows, vocab, random_floats(rows * vocab, random, 3));
  DeviceMatrix tokens(backend, rows, 1, DType::kI32), logprobs(backend, rows, 1);
  const SampleBatch batch{.rows = std::vector<SampleRow>(size_t(rows), row)};
  for (auto _ : state) {
    backend.sample(logits.tensor(), batch, {tokens.tensor(), logprobs.tensor(), Tensor()});
  }
  count(state, double(rows * vocab) * sizeof(float), 0);
}

void add_all(Backend& backend) {
  add_wide_rows(backend);
  add_wide_attention_rows(backend);
  for (const LinearCase& c : linear_cases()) {
    if (c.rows == 0) continue;
    add_row("linear/" + dims({c.rows, c.outputs, c.inputs}) + "/" +
                format_name(c.format, c.input_scales),
            [&backend, c](State& state) { linear(state, backend, c); });
  }
  for (const ExpertsCase& c : experts_cases()) {
    if (c.rows == 0) continue;
    add_row("experts/" + dims({c.rows, c.num_experts, c.top_k, c.hidden, c.width}) + "/" +
                format_name(c.format, c.input_scales),
            [&backend, c](State& state) { experts(state, backend, c); });
  }
  for (const AttentionCase& c : attention_cases()) {
    if (c.segments.empty()) continue;
    add_attention_row(backend, c);
  }
  for (const int64_t vocab : {6144, 154880}) {
    for (const int64_t rows : {1, 64}) {
      add_row("sample/greedy/" + dims({rows, vocab}),
              [&backend, rows, vocab](State& state) { sample(state, backend, rows, vocab, {}); });
      add_row("sample/top_p/" + dims({rows, vocab}), [&backend, rows, vocab](State& state) {
        sample(state, backend, rows, vocab, {.temperature = 1.0f, .top_p = 0.95f, .uniform = 0.7f});
      });
      add_row("sample/top_k/" + dims({rows, vocab}), [&backend, rows, vocab](State& state) {
        sample(state, backend, rows, vocab, {.temperature = 1.0f, .top_k = 40, .uniform = 0.7f});
      });
    }
  }
}

}  // namespace

void count(State& state, double bytes, double flops) {
  const auto rate = [&](const char* name, double value) {
    state.counters[name] = benchmark::Counter(value, benchmark::Counter::kIsIterationInvariantRate);
  };
  rate("B/s", bytes);
  rate("FLOP/s", flops);
  if (bench_limits.read_bytes_per_second > 0) {
    rate("of_reading", bytes / bench_limits.read_bytes_per_second);
  }
  if (bench_limits.flops_per_second > 0) rate("of_peak", flops / bench_limits.flops_per_second);
}

void report_each(State& state, int64_t runs) {
  state.counters["each"] = benchmark::Counter(
      double(runs), benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

std::string dims(std::initializer_list<int64_t> values) {
  std::string text;
  for (const int64_t v : values) text += (text.empty() ? "" : "x") + std::to_string(v);
  return text;
}

int64_t copies_beyond_caches(int64_t bytes, int64_t most) {
  constexpr int64_t kBeyondCaches = int64_t(200) << 20;
  return std::clamp<int64_t>(kBeyondCaches / bytes, 1, most);
}

void replay_copies(State& state, Backend& backend, int64_t copies, const Tensor& out,
                   const std::function<void(int64_t)>& run) {
  static uint64_t key = 0;
  ++key;
  float first = 0;
  const auto once = [&] {
    backend.replay(key, [&] {
      for (int64_t i = 0; i < copies; ++i) run(i);
    });
    backend.read(out.data, &first, sizeof(first));
  };
  once();  // which records
  for (auto _ : state) once();
  report_each(state, copies);
}

}  // namespace nibble

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  nibble::BackendOptions options{.device = "cpu"};
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    constexpr std::string_view kDevice = "--device=", kThreads = "--threads=";
    if (argument.starts_with(kDevice)) {
      options.device = argument.substr(kDevice.size());
    } else if (argument.starts_with(kThreads)) {
      options.threads = std::atoi(argv[i] + kThreads.size());
    } else {
      std::cerr
          << argument
          << ": there is no such flag; --device=NAME, --threads=N and benchmark's there are\n";
      return 1;
    }
  }
  const auto backend = nibble::create_backend(options);
  const nibble::MachineLimits limits = nibble::bench_limits = backend->measure_limits();
  benchmark::AddCustomContext("backend", backend->description());
  benchmark::AddCustomContext("read bandwidth",
                              std::to_string(limits.read_bytes_per_second / 1e9) + " GB/s");
  benchmark::AddCustomContext("peak", std::to_string(limits.flops_per_second / 1e9) + " GFLOP/s");
  nibble::add_all(*backend);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
