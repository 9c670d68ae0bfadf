#include <string>

#include "backend/bench.h"

namespace nibble {
namespace {

using benchmark::State;

// A step of attention, and what it amounts to.
struct AttentionStep {
  MlaShape shape;
  Batch batch{};
  double pairs = 0, positions = 0;  // (row, position) seen; positions read
};

AttentionStep step_of(const AttentionCase& c) {
  AttentionStep step{.shape = mla_shape(c)};
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
double flops(const AttentionCase& c, const AttentionStep& step) {
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
  const DType dtype = backend.activation_dtype();
  DeviceMatrix q(backend, rows, q_dim, random_floats(rows * q_dim, random), dtype);
  DeviceMatrix out(backend, rows, c.heads * step.shape.value_dim, dtype);
  backend.begin_step(step.batch);
  for (auto _ : state) {
    backend.mla_attention(q.tensor(), kv_b, step.shape, step.batch, cache, out.tensor());
  }
  backend.free(cache.data);
  count(state, step.positions * double(kv_record_bytes(cache)) + double(storage_bytes(kv_b)),
        flops(c, step));
}

constexpr int64_t kMostLayers = 24;

void wide_attention(State& state, Backend& backend, const std::vector<Weight>& weights,
                    const AttentionCase& c) {
  std::mt19937 random(1);
  const AttentionStep step = step_of(c);
  std::vector<KvLayer> caches{layer_of(backend, c, step)};
  const double bytes = step.positions * double(kv_record_bytes(caches[0]));
  const int64_t copies = copies_beyond_caches(int64_t(bytes), kMostLayers);
  while (int64_t(caches.size()) < copies) caches.push_back(layer_of(backend, c, step));
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
  count(state, double(copies) * bytes, double(copies) * flops(c, step));
}

void wide_store(State& state, Backend& backend, const AttentionCase& c) {
  std::mt19937 random(1);
  const AttentionStep step = step_of(c);
  const KvLayer cache = layer_of(backend, c, step);
  const Weight gain =
      backend.upload(random_weight("gain", Use::kVector, Format::kBF16, 1, 1, 512, random));
  const int64_t rows = step.batch.rows(), width = step.shape.record_dim();
  const DType dtype = backend.activation_dtype();
  DeviceMatrix kv(backend, rows, width, random_floats(rows * width, random), dtype);
  backend.begin_step(step.batch);
  replay_copies(state, backend, kMostLayers, Tensor(cache.data, DType::kF32, 1, 1), [&](int64_t) {
    backend.mla_store(kv.tensor(), gain, step.shape, step.batch, cache);
  });
  count(state,
        double(kMostLayers * rows) *
            double(kv_record_bytes(cache) + width * int64_t(dtype_bytes(dtype))),
        0);
  backend.free(cache.data);
}

constexpr int kWidePage = 64;
constexpr int kContext = 1024;

std::string kv_format_name(KvFormat format) {
  constexpr const char* kNames[] = {"kv-f32", "kv-bf16", "kv-fp8", "kv-int8", "kv-nvfp4"};
  return kNames[size_t(format)];
}

}  // namespace

void add_attention_row(Backend& backend, const AttentionCase& c) {
  std::string name = "attention/" + std::to_string(c.heads) + "heads";
  for (const auto& [context, rows] : c.segments) {
    name += "/" + std::to_string(context) + "+" + std::to_string(rows);
  }
  add_row(name + "/" + kv_format_name(c.kv_format),
          [&backend, c](State& state) { attention(state, backend, c); });
}

// Rows of a batch by context and cache; prompts; rows stored.
void add_wide_attention_rows(Backend& backend) {
  const auto weights = std::make_shared<std::vector<Weight>>();
  const auto add = [&](const std::string& name, const AttentionCase& c) {
    add_row("wide/attention/" + name + "/" + kv_format_name(c.kv_format),
            [&backend, weights, c](State& state) {
              std::mt19937 random(1);
              while (int64_t(weights->size()) < kMostLayers) {
                weights->push_back(latent_up(backend, c, random));
              }
              wide_attention(state, backend, *weights, c);
            });
  };
  const auto rows_behind = [](KvFormat format, int rows, int context) {
    AttentionCase c{20, format, kWidePage, {}, Format::kNvfp4};
    for (int i = 0; i < rows; ++i) c.segments.push_back({context, 1});
    return c;
  };
  const std::vector<std::pair<int, int>> card{{1, 1}, {1, 8},  {1, 32}, {1, 128},
                                              {8, 1}, {8, 32}, {64, 1}, {64, 8}};
  const std::vector<std::pair<int, int>> host{{1, 1}, {1, 8}, {4, 1}, {16, 1}};
  for (const KvFormat format :
       {KvFormat::kBF16, KvFormat::kInt8, KvFormat::kFp8, KvFormat::kNvfp4}) {
    for (const auto& [rows, thousands] : backend.is_card() ? card : host) {
      const int context = thousands * kContext;
      add(dims({rows, context}), rows_behind(format, rows, context));
    }
  }
  const int prompt = backend.is_card() ? 2048 : 512;
  for (const int context : {0, 3 * prompt, 15 * prompt}) {
    add("prompt/" + std::to_string(context) + "+" + std::to_string(prompt),
        {20, KvFormat::kInt8, kWidePage, {{context, prompt}}, Format::kNvfp4, false, true});
  }
  for (const int rows : {1, 64, 2048}) {
    const AttentionCase c = rows_behind(KvFormat::kInt8, rows, 0);
    add_row("wide/store/" + dims({rows, 576}) + "/kv-int8",
            [&backend, c](State& state) { wide_store(state, backend, c); });
  }
}

}  // namespace nibble
