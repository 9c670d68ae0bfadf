// The cases of backend_test, timed: time, GB/s of weights or cache records as stored, GFLOP/s. The
// context lines give what the machine can do at best.
//
//   backend_bench --benchmark_filter=linear
//   backend_bench --device=cuda --benchmark_filter=wide
//
// On a card a row is one operation's launch and wait; the rows named wide are the full-size model's
// matrices, recorded once and replayed, over as many copies as keep them out of the card's cache.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <iostream>
#include <string_view>

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

// Enough of a matrix to read it from memory beyond any cache.
constexpr int64_t kBeyondCaches = int64_t(200) << 20;

// Records one call of run(copy) for each copy and times the replay, a copy's share of it.
template <typename Run>
void replay_copies(State& state, Backend& backend, int64_t copies, const Tensor& out, Run run) {
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
}

void wide_linear(State& state, Backend& backend, const LinearCase& c) {
  std::mt19937 random(1);
  const Weight host = random_weight("w", Use::kLinear, c.format, 1, c.outputs, c.inputs, random);
  const int64_t copies = std::clamp<int64_t>(kBeyondCaches / storage_bytes(host), 1, 64);
  std::vector<Weight> weights;
  for (int64_t i = 0; i < copies; ++i) weights.push_back(backend.upload(host));
  const DType dtype = backend.activation_dtype();
  DeviceMatrix x(backend, c.rows, c.inputs, random_floats(c.rows * c.inputs, random), dtype);
  DeviceMatrix out(backend, c.rows, c.outputs, dtype);
  replay_copies(state, backend, copies, out.tensor(),
                [&](int64_t i) { backend.linear(x.tensor(), weights[size_t(i)], out.tensor()); });
  count(state, double(copies * storage_bytes(host)),
        2.0 * double(copies * c.rows * c.outputs * c.inputs));
}

void wide_experts(State& state, Backend& backend, const ExpertsCase& c) {
  std::mt19937 random(1);
  const Weight gate_up = backend.upload(random_weight(
      "gate_up", Use::kGatedExperts, c.format, c.num_experts, 2 * c.width, c.hidden, random));
  const Weight down = backend.upload(
      random_weight("down", Use::kExperts, c.format, c.num_experts, c.hidden, c.width, random));
  const DType dtype = backend.activation_dtype();
  DeviceMatrix x(backend, c.rows, c.hidden, random_floats(c.rows * c.hidden, random), dtype);
  DeviceMatrix out(backend, c.rows, c.hidden, dtype);
  DeviceMatrix weights(backend, c.rows, c.top_k,
                       std::vector<float>(size_t(c.rows * c.top_k), 0.25f));
  // Each copy a routing of its own, over the same experts.
  const int64_t copies = 12, pairs = c.rows * c.top_k;
  DeviceMatrix ids(backend, copies * c.rows, c.top_k, DType::kI32);
  std::vector<int32_t> chosen(size_t(copies * pairs)), experts(size_t(c.num_experts));
  double distinct = 0;
  for (int64_t i = 0; i < copies; ++i) {
    std::vector<bool> seen(experts.size());
    for (int64_t t = 0; t < c.rows; ++t) {
      for (size_t e = 0; e < experts.size(); ++e) experts[e] = int32_t(e);
      std::ranges::shuffle(experts, random);
      for (int64_t k = 0; k < c.top_k; ++k) {
        chosen[size_t(i * pairs + t * c.top_k + k)] = experts[size_t(k)];
        seen[size_t(experts[size_t(k)])] = true;
      }
    }
    distinct += double(std::ranges::count(seen, true));
  }
  backend.write(ids.tensor().data, chosen.data(), chosen.size() * sizeof(int32_t));
  replay_copies(state, backend, copies, out.tensor(), [&](int64_t i) {
    const Tensor routed(static_cast<int32_t*>(ids.tensor().data) + i * pairs, DType::kI32, c.rows,
                        c.top_k);
    backend.experts(x.tensor(), {routed, weights.tensor()}, gate_up, down, out.tensor());
  });
  count(state, distinct * double(storage_bytes(gate_up) + storage_bytes(down)) / c.num_experts,
        6.0 * double(copies * pairs * c.width * c.hidden));
}

// A step of full-size attention, and what it amounts to.
struct AttentionStep {
  MlaShape shape{.heads = 0,
                 .nope_dim = 192,
                 .rope_dim = 64,
                 .value_dim = 256,
                 .latent_dim = 512,
                 .rope_theta = 1e6f,
                 .norm_eps = 1e-5f};
  Batch batch{};
  double pairs = 0, positions = 0;  // (row, position) seen; positions read
};

AttentionStep step_of(const AttentionCase& c) {
  AttentionStep step;
  step.shape.heads = c.heads;
  Batch& batch = step.batch;
  for (const auto& [context, rows] : c.segments) {
    batch.segments.push_back(
        {batch.rows(), rows, context, int(batch.pages.size()), c.expanded && rows > 1});
    for (int t = 0; t < context + rows; t += c.page_size) {
      batch.pages.push_back(int32_t(batch.pages.size()));
    }
    batch.tokens.resize(size_t(batch.rows() + rows));
    for (int i = 0; i < rows; ++i) step.pairs += context + i + 1;
    step.positions += context + rows;
  }
  return step;
}

KvLayer layer_of(Backend& backend, const AttentionCase& c, const AttentionStep& step) {
  KvLayer cache{.format = c.kv_format,
                .page_size = c.page_size,
                .width = step.shape.record_dim(),
                .latent = step.shape.latent_dim};
  cache.data = backend.allocate(size_t(kv_page_bytes(cache)) * step.batch.pages.size());
  return cache;
}

Weight latent_up(Backend& backend, const AttentionCase& c, std::mt19937& random) {
  Weight host = random_weight("kv_b", Use::kLatentUp, c.format, c.heads, 448, 512, random);
  host.key_rows = 192;
  return backend.upload(host);
}

// Absorbed, or with what it takes to expand the records.
double attention_flops(const AttentionCase& c, const AttentionStep& step) {
  const double up = 2.0 * 448 * 512, rows = double(step.batch.rows());
  if (c.expanded) return c.heads * (step.pairs * 2 * (256 + 256) + step.positions * up);
  return c.heads * (step.pairs * 2 * (576 + 512) + rows * up);
}

void attention(State& state, Backend& backend, const AttentionCase& c) {
  std::mt19937 random(1);
  const AttentionStep step = step_of(c);
  const KvLayer cache = layer_of(backend, c, step);
  const Weight kv_b = latent_up(backend, c, random);
  const int64_t rows = step.batch.rows(), q_dim = c.heads * step.shape.query_dim();
  DeviceMatrix q(backend, rows, q_dim, random_floats(rows * q_dim, random));
  DeviceMatrix out(backend, rows, c.heads * step.shape.value_dim);
  backend.begin_step(step.batch);
  for (auto _ : state) {
    backend.mla_attention(q.tensor(), kv_b, step.shape, step.batch, cache, out.tensor());
  }
  backend.free(cache.data);
  count(state, step.positions * double(kv_record_bytes(cache)) + double(storage_bytes(kv_b)),
        attention_flops(c, step));
}

void wide_attention(State& state, Backend& backend, const AttentionCase& c) {
  std::mt19937 random(1);
  const AttentionStep step = step_of(c);
  std::vector<KvLayer> caches{layer_of(backend, c, step)};
  const double bytes = step.positions * double(kv_record_bytes(caches[0]));
  const int64_t copies = std::clamp<int64_t>(kBeyondCaches / int64_t(bytes), 1, 24);
  std::vector<Weight> weights;
  while (int64_t(caches.size()) < copies) caches.push_back(layer_of(backend, c, step));
  for (int64_t i = 0; i < copies; ++i) weights.push_back(latent_up(backend, c, random));
  const int64_t rows = step.batch.rows(), q_dim = c.heads * step.shape.query_dim();
  const DType dtype = backend.activation_dtype();
  DeviceMatrix q(backend, rows, q_dim, random_floats(rows * q_dim, random), dtype);
  DeviceMatrix out(backend, rows, c.heads * step.shape.value_dim, dtype);
  backend.begin_step(step.batch);
  replay_copies(state, backend, copies, out.tensor(), [&](int64_t i) {
    backend.mla_attention(q.tensor(), weights[size_t(i)], step.shape, step.batch, caches[size_t(i)],
                          out.tensor());
  });
  for (const KvLayer& cache : caches) backend.free(cache.data);
  count(state, double(copies) * bytes, double(copies) * attention_flops(c, step));
  state.SetLabel(std::to_string(copies) + " layers");
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

// The matrices of a layer of REAP-23B, of its dense layer and of its head.
void add_wide(Backend& backend) {
  const LinearCase shapes[] = {
      {1, 1344, 2048, Format::kNvfp4},  {1, 5120, 768, Format::kNvfp4},
      {1, 2048, 5120, Format::kNvfp4},  {1, 3072, 2048, Format::kNvfp4},
      {1, 2048, 1536, Format::kNvfp4},  {1, 20480, 2048, Format::kNvfp4},
      {1, 2048, 10240, Format::kNvfp4}, {1, 2048, 5120, Format::kBF16},
      {1, 154880, 2048, Format::kBF16},
  };
  for (const int64_t rows : {1, 8, 64, 512, 2048}) {
    for (LinearCase c : shapes) {
      c.rows = rows;
      if (c.outputs > 100000 && rows > 64) continue;  // a head has no more rows
      add("wide/linear/" + dims({c.rows, c.outputs, c.inputs}) + "/" + format_name(c.format, false),
          [&backend, c](State& state) { wide_linear(state, backend, c); });
    }
    const ExpertsCase c{rows, 48, 4, 2048, 1536, Format::kNvfp4};
    add("wide/experts/" + dims({c.rows, c.num_experts, c.top_k, c.hidden, c.width}) + "/nvfp4",
        [&backend, c](State& state) { wide_experts(state, backend, c); });
  }
}

// Rows of a batch by context and cache, and 2,048 rows of a prompt.
void add_wide_attention(Backend& backend) {
  constexpr int kPage = 64, kPrompt = 2048, k = 1024;
  const auto add_case = [&](const std::string& name, const AttentionCase& c) {
    add("wide/attention/" + name + "/" + kv_format_name(c.kv_format),
        [&backend, c](State& state) { wide_attention(state, backend, c); });
  };
  for (const KvFormat format :
       {KvFormat::kBF16, KvFormat::kInt8, KvFormat::kFp8, KvFormat::kNvfp4}) {
    for (const auto& [rows, context] : {std::pair{1, k},
                                        {1, 8 * k},
                                        {1, 32 * k},
                                        {1, 128 * k},
                                        {8, k},
                                        {8, 32 * k},
                                        {64, k},
                                        {64, 8 * k}}) {
      AttentionCase c{20, format, kPage, {}, Format::kNvfp4};
      for (int i = 0; i < rows; ++i) c.segments.push_back({context, 1});
      add_case(dims({rows, context}), c);
    }
  }
  for (const int context : {0, 6 * k, 30 * k}) {
    add_case("prompt/" + std::to_string(context) + "+" + std::to_string(kPrompt),
             {20, KvFormat::kInt8, kPage, {{context, kPrompt}}, Format::kNvfp4, false, true});
  }
}

void add_all(Backend& backend) {
  if (backend.is_card()) {
    add_wide(backend);
    add_wide_attention(backend);
  }
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
  std::string device = "cpu";
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    constexpr std::string_view kDevice = "--device=";
    if (!argument.starts_with(kDevice)) {
      std::cerr << argument << ": there is no such flag; --device=NAME and benchmark's there are\n";
      return 1;
    }
    device = argument.substr(kDevice.size());
  }
  const auto backend = nibble::create_backend({.device = device});
  const nibble::MachineLimits limits = backend->measure_limits();
  benchmark::AddCustomContext("backend", backend->description());
  benchmark::AddCustomContext("read bandwidth",
                              std::to_string(limits.read_bytes_per_second / 1e9) + " GB/s");
  benchmark::AddCustomContext("peak", std::to_string(limits.flops_per_second / 1e9) + " GFLOP/s");
  nibble::add_all(*backend);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
