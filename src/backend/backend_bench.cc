// The cases of backend_test, timed: time, GB/s of weights or cache records as stored, GFLOP/s. The
// context lines give what the machine can do at best.
//
//   backend_bench --benchmark_filter=linear
#include <benchmark/benchmark.h>

#include "backend/cases.h"
#include "backend/create.h"

namespace nibble {
namespace {

using benchmark::Counter;
using benchmark::State;

void count(State& state, double bytes, double flops) {
  state.counters["B/s"] = Counter(bytes, Counter::kIsIterationInvariantRate);
  state.counters["FLOP/s"] = Counter(flops, Counter::kIsIterationInvariantRate);
}

std::string format_name(Format format, bool input_scales) {
  constexpr const char* kNames[] = {"f32", "bf16", "nvfp4", "fp8", "int4"};
  return std::string(kNames[size_t(format)]) + (input_scales ? "+input_scales" : "");
}

void linear(State& state, Backend& backend, const LinearCase& c) {
  std::mt19937 random(1);
  const Weight w = backend.upload(
      random_weight("w", Use::kLinear, c.format, 1, c.outputs, c.inputs, random, c.input_scales));
  DeviceMatrix x(backend, c.rows, c.inputs, random_floats(c.rows * c.inputs, random));
  DeviceMatrix out(backend, c.rows, c.outputs);
  for (auto _ : state) backend.linear(x.tensor(), w, out.tensor(), c.accumulate);
  count(state, double(storage_bytes(w)), 2.0 * double(c.rows * c.outputs * c.inputs));
}

void experts(State& state, Backend& backend, const ExpertsCase& c) {
  std::mt19937 random(1);
  const Weight gate_up =
      backend.upload(random_weight("gate_up", Use::kExperts, c.format, c.num_experts, 2 * c.width,
                                   c.hidden, random, c.input_scales));
  const Weight down = backend.upload(random_weight("down", Use::kExperts, c.format, c.num_experts,
                                                   c.hidden, c.width, random, c.input_scales));
  DeviceMatrix x(backend, c.rows, c.hidden, random_floats(c.rows * c.hidden, random));
  DeviceMatrix ids(backend, c.rows, c.top_k, DType::kI32), out(backend, c.rows, c.hidden);
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

void attention(State& state, Backend& backend, const AttentionCase& c) {
  const MlaShape s{.heads = c.heads,
                   .nope_dim = 192,
                   .rope_dim = 64,
                   .value_dim = 256,
                   .latent_dim = 512,
                   .rope_theta = 1e6f,
                   .norm_eps = 1e-5f};
  std::mt19937 random(1);
  Batch batch;
  double pairs = 0, positions = 0;  // (row, position) seen; positions read
  for (const auto& [context, rows] : c.segments) {
    batch.segments.push_back({batch.rows(), rows, context, int(batch.pages.size())});
    for (int t = 0; t < context + rows; t += c.page_size) {
      batch.pages.push_back(int32_t(batch.pages.size()));
    }
    batch.tokens.resize(size_t(batch.rows() + rows));
    for (int i = 0; i < rows; ++i) pairs += context + i + 1;
    positions += context + rows;
  }
  KvLayer cache{.format = c.kv_format,
                .page_size = c.page_size,
                .width = s.record_dim(),
                .latent = s.latent_dim};
  cache.data = backend.allocate(size_t(kv_page_bytes(cache)) * batch.pages.size());
  Weight host = random_weight("kv_b", Use::kLatentUp, c.format, c.heads, 448, 512, random);
  host.key_rows = s.nope_dim;
  const Weight kv_b = backend.upload(host);
  DeviceMatrix q(backend, batch.rows(), c.heads * s.query_dim(),
                 random_floats(batch.rows() * c.heads * s.query_dim(), random));
  DeviceMatrix out(backend, batch.rows(), c.heads * s.value_dim);
  backend.begin_step(batch);
  for (auto _ : state) backend.mla_attention(q.tensor(), kv_b, s, batch, cache, out.tensor());
  backend.free(cache.data);
  count(state, positions * double(kv_record_bytes(cache)) + double(storage_bytes(kv_b)),
        c.heads *
            (pairs * 2 * (s.record_dim() + s.latent_dim) + double(batch.rows()) * 2 * 448 * 512));
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

std::string kv_format_name(KvFormat format) {
  switch (format) {
    case KvFormat::kF32:
      return "kv-f32";
    case KvFormat::kBF16:
      return "kv-bf16";
    case KvFormat::kFp8:
      return "kv-fp8";
    case KvFormat::kInt8:
      return "kv-int8";
    case KvFormat::kNvfp4:
      return "kv-nvfp4";
  }
  return "";
}

std::string dims(std::initializer_list<int64_t> values) {
  std::string text;
  for (const int64_t v : values) text += (text.empty() ? "" : "x") + std::to_string(v);
  return text;
}

template <typename Body>
void add(const std::string& name, Body body) {
  benchmark::RegisterBenchmark(name.c_str(), body)->Unit(benchmark::kMicrosecond)->UseRealTime();
}

void add_all(Backend& backend) {
  for (const LinearCase& c : linear_cases()) {
    if (c.rows == 0) continue;
    add("linear/" + dims({c.rows, c.outputs, c.inputs}) + "/" +
            format_name(c.format, c.input_scales),
        [&backend, c](State& state) { linear(state, backend, c); });
  }
  for (const ExpertsCase& c : experts_cases()) {
    if (c.rows == 0) continue;
    add("experts/" + dims({c.rows, c.num_experts, c.top_k, c.hidden, c.width}) + "/" +
            format_name(c.format, c.input_scales),
        [&backend, c](State& state) { experts(state, backend, c); });
  }
  for (const AttentionCase& c : attention_cases()) {
    if (c.segments.empty()) continue;
    std::string name = "attention/" + std::to_string(c.heads) + "heads";
    for (const auto& [context, rows] : c.segments) {
      name += "/" + std::to_string(context) + "+" + std::to_string(rows);
    }
    add(name + "/" + kv_format_name(c.kv_format),
        [&backend, c](State& state) { attention(state, backend, c); });
  }
  for (const int64_t vocab : {6144, 154880}) {
    for (const int64_t rows : {1, 64}) {
      add("sample/greedy/" + dims({rows, vocab}),
          [&backend, rows, vocab](State& state) { sample(state, backend, rows, vocab, {}); });
      add("sample/top_p/" + dims({rows, vocab}), [&backend, rows, vocab](State& state) {
        sample(state, backend, rows, vocab, {.temperature = 1.0f, .top_p = 0.95f, .uniform = 0.7f});
      });
      add("sample/top_k/" + dims({rows, vocab}), [&backend, rows, vocab](State& state) {
        sample(state, backend, rows, vocab, {.temperature = 1.0f, .top_k = 40, .uniform = 0.7f});
      });
    }
  }
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const auto backend = nibble::create_backend({.device = "cpu"});
  const nibble::MachineLimits limits = backend->measure_limits();
  benchmark::AddCustomContext("backend", backend->description());
  benchmark::AddCustomContext("read bandwidth",
                              std::to_string(limits.read_bytes_per_second / 1e9) + " GB/s");
  benchmark::AddCustomContext("peak", std::to_string(limits.flops_per_second / 1e9) + " GFLOP/s");
  nibble::add_all(*backend);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
