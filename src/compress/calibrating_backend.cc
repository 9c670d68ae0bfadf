#include "compress/calibrating_backend.h"

#include <algorithm>
#include <memory>

namespace nibble {
namespace {

// What an uploaded stack of experts points to.
using ExpertLinears = std::vector<Weight>;

// Rows [first, first + count) of a stack as a linear.
Weight slice(const Weight& stack, int64_t first, int64_t count, const std::string& name) {
  Weight linear{
      .name = name, .use = Use::kLinear, .rows = count, .cols = stack.cols, .source = stack.source};
  for (const WeightPart& part : stack.parts) {
    if (count <= 0) break;
    if (first >= part.rows) {
      first -= part.rows;
      continue;
    }
    WeightPart piece = part;
    piece.rows = std::min(count, part.rows - first);
    const int64_t bits = part.format == Format::kF32 ? 32 : part.format == Format::kBF16 ? 16 : 4;
    piece.values += first * stack.cols * bits / 8;
    if (piece.block_scales != nullptr) piece.block_scales += first * stack.cols / 16;
    linear.parts.push_back(piece);
    count -= piece.rows;
    first = 0;
  }
  return linear;
}

const Weight& expert_linear(const Weight& stack, int expert) {
  CHECK(stack.resident != nullptr, "%s is not uploaded", stack.name.c_str());
  return (*static_cast<const ExpertLinears*>(stack.resident.get()))[size_t(expert)];
}

}  // namespace

CalibratingBackend::CalibratingBackend(Backend& inner) : inner_(inner) {
  CHECK(inner.activation_dtype() == DType::kF32, "calibration needs FP32 activations");
}

void CalibratingBackend::watch(std::set<std::string> names, bool stop, Observer observer) {
  names_ = std::move(names);
  observer_ = std::move(observer);
  stop_ = stop;
  stopped_ = false;
  seen_.clear();
}

Weight CalibratingBackend::upload(const Weight& host) {
  if (host.use != Use::kExperts && host.use != Use::kGatedExperts) return inner_.upload(host);
  auto linears = std::make_shared<ExpertLinears>();
  for (int64_t e = 0; e < host.count; ++e) {
    linears->push_back(
        inner_.upload(slice(host, e * host.rows, host.rows, host.name + "." + std::to_string(e))));
  }
  Weight uploaded = host;
  uploaded.resident = linears;
  return uploaded;
}

void CalibratingBackend::begin_step(const Batch& batch) {
  seen_.clear();
  stopped_ = false;
  inner_.begin_step(batch);
}

void CalibratingBackend::start_at(const std::string& name, const float* x) {
  start_ = name;
  start_inputs_ = x;
}

void CalibratingBackend::observe(const ObservedInputs& inputs) {
  observer_(inputs);
}

void CalibratingBackend::mark_seen(const Weight& weight) {
  seen_.insert(weight.name);
  if (stop_ && seen_.size() == names_.size()) stopped_ = true;
}

Tensor CalibratingBackend::buffer(Buffer& buffer, int64_t rows, int64_t cols) {
  const size_t bytes = size_t(rows * cols) * sizeof(float);
  if (bytes > buffer.bytes) {
    const auto owner = std::shared_ptr<void>(inner_.allocate(bytes),
                                             [this](void* memory) { inner_.free(memory); });
    std::erase_if(memory_, [&](const auto& memory) { return memory.get() == buffer.data; });
    memory_.push_back(owner);
    buffer = {owner.get(), bytes};
  }
  return {buffer.data, DType::kF32, rows, cols};
}

const float* CalibratingBackend::to_host(Tensor tensor, KeptArray<float>& host) {
  float* rows = host.fit(size_t(tensor.rows * tensor.cols));
  if (tensor.stride == tensor.cols) {
    inner_.read(tensor.data, rows, size_t(tensor.rows * tensor.cols) * sizeof(float));
    return rows;
  }
  for (int64_t r = 0; r < tensor.rows; ++r) {
    inner_.read(static_cast<const float*>(tensor.data) + r * tensor.stride, rows + r * tensor.cols,
                size_t(tensor.cols) * sizeof(float));
  }
  return rows;
}

void CalibratingBackend::embed(const Weight& table, const Batch& batch, Tensor out) {
  if (!skips()) inner_.embed(table, batch, out);
}

void CalibratingBackend::add_rms_norm(Tensor x, Tensor delta, const Weight& gain, float eps,
                                      Tensor out) {
  if (!skips()) inner_.add_rms_norm(x, delta, gain, eps, out);
}

void CalibratingBackend::gather_rows(Tensor x, const Batch& batch, Tensor out) {
  if (!skips()) inner_.gather_rows(x, batch, out);
}

void CalibratingBackend::linear(Tensor x, const Weight& w, Tensor out, bool accumulate) {
  if (w.name == start_) {
    CHECK(x.stride == x.cols);
    inner_.write(x.data, start_inputs_, size_t(x.rows * x.cols) * sizeof(float));
    start_.clear();
  }
  if (skips()) return;
  if (watches(w)) {
    observe({.weight = w, .x = to_host(x, seen_rows_), .rows = x.rows, .cols = x.cols});
    mark_seen(w);
    if (stop_) return;
  }
  inner_.linear(x, w, out, accumulate);
}

void CalibratingBackend::silu_mul(Tensor gate_up, Tensor out) {
  if (!skips()) inner_.silu_mul(gate_up, out);
}

void CalibratingBackend::mla_store(Tensor kv, const Weight& gain, const MlaShape& shape,
                                   const Batch& batch, const KvLayer& cache) {
  if (skips()) return;
  inner_.mla_store(kv, gain, shape, batch, cache);
  Tensor latent = buffer(latent_, kv.rows, shape.latent_dim);
  inner_.add_rms_norm(kv.columns(0, shape.latent_dim), {}, gain, shape.norm_eps, latent);
}

void CalibratingBackend::mla_attention(Tensor q, const Weight& kv_b, const MlaShape& shape,
                                       const Batch& batch, const KvLayer& cache, Tensor out) {
  if (skips()) return;
  if (watches(kv_b)) {
    const float* latents = to_host(buffer(latent_, q.rows, shape.latent_dim), seen_rows_);
    observe({.weight = kv_b, .x = latents, .rows = q.rows, .cols = shape.latent_dim});
    mark_seen(kv_b);
    if (stop_) return;
  }
  inner_.mla_attention(q, kv_b, shape, batch, cache, out);
}

void CalibratingBackend::route(Tensor x, const Weight& router, const Weight& bias,
                               const RouterShape& shape, Routing out) {
  if (!skips()) inner_.route(x, router, bias, shape, out);
}

std::vector<CalibratingBackend::ExpertRows> CalibratingBackend::rows_of_experts(
    const Routing& routing, int64_t num_experts) {
  const int64_t rows = routing.experts.rows, slots = routing.experts.cols;
  std::vector<int32_t> chosen(size_t(rows * slots));
  CHECK(routing.experts.stride == slots && routing.weights.stride == slots);
  inner_.read(routing.experts.data, chosen.data(), chosen.size() * sizeof(int32_t));
  const float* weights = to_host(routing.weights, routing_);
  std::vector<ExpertRows> experts(static_cast<size_t>(num_experts));
  for (int64_t i = 0; i < rows * slots; ++i) {
    ExpertRows& expert = experts[size_t(chosen[size_t(i)])];
    expert.rows.push_back(int32_t(i / slots));
    expert.weights.push_back(weights[i]);
  }
  return experts;
}

void CalibratingBackend::run_expert(int expert, const ExpertRows& chosen, const float* x,
                                    const Weight& gate_up, const Weight& down, bool to_the_end,
                                    float* sum) {
  const int64_t rows = int64_t(chosen.rows.size()), cols = gate_up.cols;
  float* input = expert_rows_.fit(size_t(rows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(x + chosen.rows[size_t(r)] * cols, cols, input + r * cols);
  }
  ObservedInputs inputs{.weight = gate_up,
                        .expert = expert,
                        .x = input,
                        .rows = rows,
                        .cols = cols,
                        .tokens = chosen.rows.data(),
                        .routing = chosen.weights.data()};
  if (watches(gate_up)) observe(inputs);
  if (!to_the_end && !watches(down)) return;

  const Tensor in = buffer(x_, rows, cols), both = buffer(gate_up_, rows, gate_up.rows);
  const Tensor middle = buffer(inner_rows_, rows, down.cols);
  inner_.write(in.data, input, size_t(rows * cols) * sizeof(float));
  inner_.linear(in, expert_linear(gate_up, expert), both);
  inner_.silu_mul(both, middle);
  if (watches(down)) {
    observe({.weight = down,
             .expert = expert,
             .x = to_host(middle, seen_rows_),
             .rows = rows,
             .cols = down.cols,
             .tokens = chosen.rows.data(),
             .routing = chosen.weights.data()});
  }
  if (!to_the_end) return;
  const Tensor out = buffer(out_, rows, down.rows);
  inner_.linear(middle, expert_linear(down, expert), out);
  const float* host = to_host(out, seen_rows_);
  for (int64_t r = 0; r < rows; ++r) {
    float* to = sum + chosen.rows[size_t(r)] * down.rows;
    const float* from = host + r * down.rows;
    for (int64_t k = 0; k < down.rows; ++k) to[k] += chosen.weights[size_t(r)] * from[k];
  }
}

void CalibratingBackend::experts(Tensor x, const Routing& routing, const Weight& gate_up,
                                 const Weight& down, Tensor out) {
  if (skips()) return;
  const std::vector<ExpertRows> experts = rows_of_experts(routing, gate_up.count);
  const float* host = to_host(x, all_rows_);
  // Nothing that can be watched after this depends on the sum.
  const bool to_the_end = !stop_;
  float* sum = sums_.fit(size_t(x.rows * down.rows));
  std::fill_n(sum, x.rows * down.rows, 0.0f);
  for (int e = 0; e < int(experts.size()); ++e) {
    run_expert(e, experts[size_t(e)], host, gate_up, down, to_the_end, sum);
  }
  if (watches(gate_up)) mark_seen(gate_up);
  if (watches(down)) mark_seen(down);
  if (to_the_end) {
    CHECK(out.stride == out.cols);
    inner_.write(out.data, sum, size_t(x.rows * down.rows) * sizeof(float));
  }
}

void CalibratingBackend::sample(Tensor logits, const SampleBatch& rows, SampleResult out) {
  inner_.sample(logits, rows, out);
}

}  // namespace nibble
