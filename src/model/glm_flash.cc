#include "model/glm_flash.h"

#include <algorithm>

namespace nibble {
namespace {

constexpr size_t kAlignment = 256;

size_t aligned(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

GlmFlash::GlmFlash(const GlmConfig& config, const GlmWeights& weights, Backend& backend,
                   int max_rows, int max_logit_rows)
    : config_(config),
      weights_(weights),
      backend_(backend),
      max_rows_(max_rows),
      max_logit_rows_(max_logit_rows) {
  arena_size_ = size_t(scratch_bytes(config, backend.activation_dtype(), max_rows, max_logit_rows));
  arena_ = static_cast<char*>(backend_.allocate(arena_size_));
}

GlmFlash::~GlmFlash() {
  backend_.free(arena_);
}

Tensor GlmFlash::forward(const Batch& batch, std::span<const KvLayer> caches) {
  CHECK(batch.rows() <= max_rows_ && int(batch.logit_rows.size()) <= max_logit_rows_);
  CHECK(int(caches.size()) == config_.num_layers);
  arena_used_ = 0;
  const int64_t logit_rows = int64_t(batch.logit_rows.size());
  const Tensor logits = scratch(logit_rows, config_.vocab, DType::kF32);
  const size_t mark = arena_used_;
  backend_.begin_step(batch);
  backend_.replay(record_key(batch, caches), [&] {
    arena_used_ = mark;
    const Tensor last = scratch(logit_rows, config_.hidden, backend_.activation_dtype());
    run_layers(batch, caches, last);
    backend_.linear(last, weights_.lm_head, logits);
  });
  return logits;
}

// A step that decodes one token a sequence makes the same calls on the same memory as any other of
// as many rows; the model's memory and the cache's name the rest.
uint64_t GlmFlash::record_key(const Batch& batch, std::span<const KvLayer> caches) const {
  const size_t rows = size_t(batch.rows());
  if (on_hidden_state || on_routing || batch.segments.size() != rows ||
      batch.logit_rows.size() != rows)
    return 0;
  const auto mix = [](uint64_t key, uint64_t value) {
    key = (key ^ value) * 0x9e3779b97f4a7c15u;
    return key ^ (key >> 29);
  };
  const uint64_t arena = reinterpret_cast<uintptr_t>(arena_);
  const uint64_t cache = reinterpret_cast<uintptr_t>(caches[0].data);
  const uint64_t chosen = reinterpret_cast<uintptr_t>(batch.chosen);
  return mix(mix(mix(mix(1, rows), arena), cache), chosen) | 1;
}

// Embedding, layers and final norm; the rows that need logits go to `last`.
void GlmFlash::run_layers(const Batch& batch, std::span<const KvLayer> caches, Tensor last) {
  const DType activation = backend_.activation_dtype();
  Tensor x = scratch(batch.rows(), config_.hidden, DType::kF32);  // residual stream
  Tensor h = scratch(batch.rows(), config_.hidden, activation);   // normalised input of a block
  Tensor d =
      scratch(batch.rows(), config_.hidden, activation);  // its output, added by the next norm

  backend_.embed(weights_.embedding, batch, x);
  for (int l = 0; l < config_.num_layers; ++l) {
    const size_t mark = arena_used_;
    const GlmLayer& w = weights_.layers[size_t(l)];
    backend_.add_rms_norm(x, l == 0 ? Tensor() : d, w.attention_norm, config_.norm_eps, h);
    hidden_state(l, x);
    attention(w, batch, caches[size_t(l)], h, d);
    backend_.add_rms_norm(x, d, w.feed_forward_norm, config_.norm_eps, h);
    feed_forward(w, config_.is_dense(l), h, d);
    arena_used_ = mark;
  }
  backend_.add_rms_norm(x, d, weights_.final_norm, config_.norm_eps, h);
  hidden_state(config_.num_layers, h);
  backend_.gather_rows(h, batch, last);
}

void GlmFlash::add_attention(int layer, const Batch& batch, const KvLayer& cache, Tensor x) {
  const GlmLayer& w = weights_.layers[size_t(layer)];
  add_block(w.attention_norm, batch, x,
            [&](Tensor h, Tensor d) { attention(w, batch, cache, h, d); });
}

void GlmFlash::add_feed_forward(int layer, const Batch& batch, Tensor x) {
  const GlmLayer& w = weights_.layers[size_t(layer)];
  add_block(w.feed_forward_norm, batch, x,
            [&](Tensor h, Tensor d) { feed_forward(w, config_.is_dense(layer), h, d); });
}

Tensor GlmFlash::head(const Batch& batch, Tensor x) {
  CHECK(batch.rows() == x.rows && batch.rows() <= max_logit_rows_);
  arena_used_ = 0;
  const Tensor logits = scratch(x.rows, config_.vocab, DType::kF32);
  const Tensor h = scratch(x.rows, config_.hidden, backend_.activation_dtype());
  backend_.begin_step(batch);
  backend_.add_rms_norm(x, {}, weights_.final_norm, config_.norm_eps, h);
  backend_.linear(h, weights_.lm_head, logits);
  return logits;
}

void GlmFlash::add_block(const Weight& norm, const Batch& batch, Tensor x,
                         const std::function<void(Tensor h, Tensor d)>& block) {
  CHECK(batch.rows() == x.rows && batch.rows() <= max_rows_);
  arena_used_ = 0;
  Tensor h = scratch(x.rows, config_.hidden, backend_.activation_dtype());
  Tensor d = scratch(x.rows, config_.hidden, backend_.activation_dtype());
  backend_.begin_step(batch);
  backend_.add_rms_norm(x, {}, norm, config_.norm_eps, h);
  block(h, d);
  backend_.add_rms_norm(x, d, norm, config_.norm_eps, h);  // for the sum alone
}

void GlmFlash::attention(const GlmLayer& w, const Batch& batch, const KvLayer& cache, Tensor h,
                         Tensor out) {
  const MlaShape mla = config_.mla();
  const DType activation = backend_.activation_dtype();
  Tensor qkv = scratch(h.rows, config_.q_rank + mla.record_dim(), activation);
  Tensor q_latent = qkv.columns(0, config_.q_rank);
  Tensor kv = qkv.columns(config_.q_rank, mla.record_dim());
  Tensor q_normed = scratch(h.rows, config_.q_rank, activation);
  Tensor q = scratch(h.rows, mla.heads * mla.query_dim(), activation);
  Tensor values = scratch(h.rows, mla.heads * mla.value_dim, activation);

  backend_.linear(h, w.qkv_a, qkv);
  backend_.add_rms_norm(q_latent, {}, w.q_norm, config_.latent_norm_eps, q_normed);
  backend_.linear(q_normed, w.q_b, q);
  backend_.mla_store(kv, w.kv_norm, mla, batch, cache);
  backend_.mla_attention(q, w.kv_b, mla, batch, cache, values);
  backend_.linear(values, w.o, out);
}

void GlmFlash::feed_forward(const GlmLayer& w, bool dense, Tensor h, Tensor out) {
  if (dense) return gated_mlp(w.feed_forward, h, out, /*accumulate=*/false);

  RouterShape router = config_.router();
  router.num_shared = int(w.experts_down.count) - config_.num_experts;
  const int64_t columns = router.top_k + router.num_shared;
  Routing routing{.experts = scratch(h.rows, columns, DType::kI32),
                  .weights = scratch(h.rows, columns, DType::kF32),
                  .num_shared = router.num_shared};
  backend_.route(h, w.router, w.router_bias, router, routing);
  if (on_routing) {
    on_routing({.experts = routing.experts.columns(0, router.top_k),
                .weights = routing.weights.columns(0, router.top_k)});
  }
  backend_.experts(h, routing, w.experts_gate_up, w.experts_down, out);
  if (w.feed_forward.down.empty()) return;
  gated_mlp(w.feed_forward, h, out, /*accumulate=*/true);  // a shared expert of its own
}

void GlmFlash::gated_mlp(const GlmFeedForward& w, Tensor h, Tensor out, bool accumulate) {
  Tensor gate_up = scratch(h.rows, w.gate_up.rows, backend_.activation_dtype());
  Tensor inner = scratch(h.rows, w.down.cols, backend_.activation_dtype());
  backend_.linear(h, w.gate_up, gate_up);
  backend_.silu_mul(gate_up, inner);
  backend_.linear(inner, w.down, out, accumulate);
}

void GlmFlash::hidden_state(int index, Tensor x) {
  if (on_hidden_state) on_hidden_state(index, x);
}

Tensor GlmFlash::scratch(int64_t rows, int64_t cols, DType dtype) {
  const size_t bytes = aligned(size_t(rows * cols) * dtype_bytes(dtype));
  CHECK(arena_used_ + bytes <= arena_size_, "%zu + %zu > %zu", arena_used_, bytes, arena_size_);
  void* memory = arena_ + arena_used_;
  arena_used_ += bytes;
  return {memory, dtype, rows, cols};
}

// The most that forward() takes at once, by the same shapes.
int64_t GlmFlash::scratch_bytes(const GlmConfig& config, DType activation, int max_rows,
                                int max_logit_rows) {
  const MlaShape mla = config.mla();
  const int64_t widest_gate = std::max<int64_t>(
      2 * int64_t(config.dense_dim), 2 * int64_t(config.expert_dim) * config.shared_experts);
  const int64_t attention =
      2 * config.q_rank + mla.record_dim() + mla.heads * (mla.query_dim() + mla.value_dim);
  const int64_t activations = 2 * config.hidden + attention + widest_gate + widest_gate / 2;
  const int64_t floats =
      config.hidden + 2 * (config.top_k + config.shared_experts);  // residual stream, routing
  const int64_t row =
      activations * int64_t(dtype_bytes(activation)) + floats * int64_t(sizeof(float));
  const int64_t logit_row =
      config.hidden * int64_t(dtype_bytes(activation)) + config.vocab * int64_t(sizeof(float));
  constexpr int64_t kTensors = 24;  // each may lose up to one alignment
  return max_rows * row + max_logit_rows * logit_row + kTensors * int64_t(kAlignment);
}

}  // namespace nibble
