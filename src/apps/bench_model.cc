#include "apps/bench_model.h"

#include <algorithm>
#include <chrono>
#include <set>

#include "engine/scheduler.h"

namespace nibble {
namespace {

constexpr double kSliceSeconds = 0.4;  // of decode steps between two looks at the machine
constexpr int kMinSteps = 4;
constexpr int kMaxSteps = 256;
constexpr int64_t kFillBytes = int64_t(16) << 20;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

ModelBench::ModelBench(Runtime& runtime, const GlmCost& cost, const MachineLimits& limits)
    : runtime_(runtime), cost_(cost), limits_(limits) {
  const int64_t rows = runtime.model->max_logit_rows();
  Backend& backend = *runtime.backend;
  result_.tokens = {backend.allocate(size_t(rows) * 4), DType::kI32, rows, 1};
  result_.logprobs = {backend.allocate(size_t(rows) * 4), DType::kF32, rows, 1};
  for (auto& tokens : tokens_) tokens.resize(size_t(rows));
}

ModelBench::~ModelBench() {
  runtime_.backend->free(result_.tokens.data);
  runtime_.backend->free(result_.logprobs.data);
}

int64_t ModelBench::pages_of(int64_t tokens) const {
  const int page_size = runtime_.engine->options().page_size;
  return (tokens + page_size - 1) / page_size;
}

// Random records in the first pages of every layer. Which values they hold does not matter to the
// speed, but they must be numbers.
void ModelBench::fill_cache(int64_t num_pages) {
  if (num_pages <= filled_pages_) return;
  KvLayer layer = runtime_.engine->caches()[0];
  const int64_t page_bytes = kv_page_bytes(layer);
  const int64_t pages = std::min(num_pages, std::max<int64_t>(1, kFillBytes / page_bytes));
  std::vector<uint8_t> memory(static_cast<size_t>(pages * page_bytes));
  layer.data = memory.data();
  std::normal_distribution<float> normal;
  std::vector<float> record(static_cast<size_t>(layer.width));
  for (float& v : record) v = normal(random_);
  for (int64_t p = 0; p < pages; ++p) {
    for (int slot = 0; slot < layer.page_size; ++slot) {
      std::rotate(record.begin(), record.begin() + 1, record.end());
      encode_record(layer, record.data(), kv_record(layer, p, slot));
    }
  }
  for (const KvLayer& cache : runtime_.engine->caches()) {
    for (int64_t p = filled_pages_; p < num_pages; p += pages) {
      runtime_.backend->write(static_cast<uint8_t*>(cache.data) + p * page_bytes, memory.data(),
                              size_t(std::min(pages, num_pages - p) * page_bytes));
    }
  }
  filled_pages_ = num_pages;
}

Batch ModelBench::batch_of(DecodePoint point, int step) {
  std::uniform_int_distribution<int32_t> id(0, runtime_.config.vocab - 1);
  const int64_t pages = pages_of(point.context + kMaxSteps);
  Batch batch;
  for (int s = 0; s < point.batch; ++s) {
    batch.segments.push_back({.first_row = s,
                              .num_rows = 1,
                              .context = point.context + step,
                              .first_page = int(s * pages)});
    batch.tokens.push_back(id(random_));
    batch.logit_rows.push_back(s);
  }
  batch.pages.resize(size_t(pages * point.batch));
  for (size_t p = 0; p < batch.pages.size(); ++p) batch.pages[p] = int32_t(p);
  return batch;
}

void ModelBench::run_step(const Batch& batch) {
  rows_.rows.resize(batch.logit_rows.size());
  SampleResult result = result_;
  result.tokens.rows = result.logprobs.rows = int64_t(rows_.rows.size());
  const Tensor logits = runtime_.model->forward(batch, runtime_.engine->caches());
  if (rows_.rows.empty()) return;
  runtime_.backend->sample(logits, rows_, result);
  void* const tokens = tokens_[begun_++ % 2].data();
  runtime_.backend->start_read(result.tokens.data, tokens, rows_.rows.size() * 4);
  finish_steps(runtime_.backend->runs_behind() ? 1 : 0);
}

void ModelBench::finish_steps(size_t ahead) {
  while (begun_ - finished_ > ahead) runtime_.backend->finish_read(tokens_[finished_++ % 2].data());
}

double ModelBench::distinct_experts(DecodePoint point) {
  if (cost_.expert_bytes == 0) return 0;
  double distinct = 0, layers = 0;
  runtime_.model->on_routing = [&](const Routing& routing) {
    const Tensor& chosen = routing.experts;  // columns of a wider table, perhaps
    std::vector<int32_t> ids(size_t((chosen.rows - 1) * chosen.stride + chosen.cols));
    runtime_.backend->read(chosen.data, ids.data(), ids.size() * 4);
    std::set<int32_t> different;
    for (int64_t t = 0; t < chosen.rows; ++t) {
      const auto first = ids.begin() + t * chosen.stride;
      different.insert(first, first + chosen.cols);
    }
    distinct += double(different.size());
    ++layers;
  };
  for (int step = 0; step < 2; ++step) run_step(batch_of(point, step));
  finish_steps();
  runtime_.model->on_routing = nullptr;
  return distinct / layers;
}

double ModelBench::step_bytes(DecodePoint point, int steps, double experts) const {
  const KvLayer& layer = runtime_.engine->caches()[0];
  const double records = point.batch * (point.context + 1 + (steps - 1) / 2.0);
  return cost_.shared_bytes + experts * cost_.expert_bytes +
         records * double(kv_record_bytes(layer)) * runtime_.config.num_layers;
}

std::optional<DecodeSpeed> ModelBench::decode(DecodePoint point, int repetitions) {
  const EngineOptions& options = runtime_.engine->options();
  const int64_t pages = pages_of(point.context + kMaxSteps) * point.batch;
  if (pages > options.num_pages || point.context + kMaxSteps > options.max_model_len ||
      point.batch > options.max_num_seqs) {
    return std::nullopt;
  }
  fill_cache(pages);
  DecodeSpeed speed{.point = point, .experts_of_a_layer = distinct_experts(point)};
  std::vector<double> rates, bytes, shares;
  for (int r = 0; r < repetitions; ++r) {
    const double bandwidth = runtime_.backend->measure_limits().read_bytes_per_second;
    run_step(batch_of(point, 0));
    finish_steps();
    int steps = 0;
    double seconds = 0;
    const auto start = std::chrono::steady_clock::now();
    while (steps < kMaxSteps - 1 && (steps < kMinSteps || seconds < kSliceSeconds)) {
      run_step(batch_of(point, ++steps));
      seconds = seconds_since(start);
    }
    finish_steps();
    seconds = seconds_since(start);
    rates.push_back(point.batch * steps / seconds);
    bytes.push_back(step_bytes(point, steps, speed.experts_of_a_layer) * steps / seconds);
    if (bandwidth > 0) shares.push_back(bytes.back() / bandwidth);
  }
  speed.tokens_per_second = median(rates);
  speed.bytes_per_second = median(bytes);
  if (!shares.empty()) speed.bandwidth_share = median(shares);
  return speed;
}

std::optional<PrefillSpeed> ModelBench::prefill(int prompt, int repetitions) {
  const EngineOptions& options = runtime_.engine->options();
  const int64_t pages = pages_of(prompt);
  if (pages > options.num_pages || prompt > options.max_model_len) return std::nullopt;
  std::uniform_int_distribution<int32_t> id(0, runtime_.config.vocab - 1);
  const bool expanded = prompt >= runtime_.backend->expanded_tokens();
  std::vector<double> times;
  for (int r = 0; r < repetitions + 1; ++r) {  // the first warms up
    const auto start = std::chrono::steady_clock::now();
    for (int first = 0; first < prompt; first += options.max_num_batched_tokens) {
      const int rows = std::min(options.max_num_batched_tokens, prompt - first);
      Batch batch{.tokens = std::vector<int32_t>(size_t(rows)),
                  .segments = {{.num_rows = rows, .context = first, .expanded = expanded}}};
      for (int32_t& token : batch.tokens) token = id(random_);
      for (int64_t p = 0; p < pages; ++p) batch.pages.push_back(int32_t(p));
      if (first + rows == prompt) batch.logit_rows = {rows - 1};
      run_step(batch);
    }
    finish_steps();
    if (r > 0) times.push_back(seconds_since(start));
  }
  filled_pages_ = std::max(filled_pages_, pages);
  const double seconds = median(times);
  PrefillSpeed speed{.prompt = prompt, .tokens_per_second = prompt / seconds};
  const double pairs = double(prompt) * (prompt + 1) / 2;
  speed.flops_per_second =
      (prompt * cost_.flops_per_token + cost_.head_flops + pairs * cost_.expanded_flops_per_pair) /
      seconds;
  if (limits_.flops_per_second > 0) {
    speed.compute_share = speed.flops_per_second / limits_.flops_per_second;
  }
  return speed;
}

}  // namespace nibble
