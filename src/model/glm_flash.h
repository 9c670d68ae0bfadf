// GlmFlash: the forward pass of GLM-4.7-Flash (glm4_moe_lite), once, over any Backend.
#pragma once

#include <functional>
#include <span>

#include "backend/backend.h"
#include "model/glm_config.h"
#include "model/glm_weights.h"

namespace nibble {

class GlmFlash {
 public:
  // Uses weights uploaded to `backend`; both must outlive the model. Scratch for `max_rows` rows,
  // `max_logit_rows` of them with logits, is allocated here and nowhere later.
  GlmFlash(const GlmConfig& config, const GlmWeights& weights, Backend& backend, int max_rows,
           int max_logit_rows);
  ~GlmFlash();
  GlmFlash(const GlmFlash&) = delete;
  GlmFlash& operator=(const GlmFlash&) = delete;

  // Bytes of that scratch.
  static int64_t scratch_bytes(const GlmConfig& config, DType activation, int max_rows,
                               int max_logit_rows);

  // Extends the caches (one a layer) by the batch's rows and returns the logits of
  // batch.logit_rows, [R, vocab] F32, valid until the next call.
  Tensor forward(const Batch& batch, std::span<const KvLayer> caches);

  // One block of a layer on a residual stream [T, D] F32 of the caller's: x += block(norm(x)). For
  // work layer by layer; all blocks in turn are what forward() computes.
  void add_attention(int layer, const Batch& batch, const KvLayer& cache, Tensor x);
  void add_feed_forward(int layer, const Batch& batch, Tensor x);
  // What comes behind all blocks: the logits of the stream's rows, at most max_logit_rows: [T,
  // vocab] F32, valid until the next call.
  Tensor head(const Batch& batch, Tensor x);

  // Called with the residual stream [T, D] after the embedding (0), after layers 0 .. L-2 (1 ..)
  // and with the final-normed rows (L), as transformers numbers hidden states. For tests.
  std::function<void(int, Tensor)> on_hidden_state{};

  // Called with the routing of each layer that has experts, on the backend. For measurements.
  std::function<void(const Routing&)> on_routing{};

  const GlmConfig& config() const { return config_; }
  Backend& backend() const { return backend_; }
  int max_rows() const { return max_rows_; }
  int max_logit_rows() const { return max_logit_rows_; }

 private:
  uint64_t record_key(const Batch& batch, std::span<const KvLayer> caches) const;
  void run_layers(const Batch& batch, std::span<const KvLayer> caches, Tensor last);
  void attention(const GlmLayer& w, const Batch& batch, const KvLayer& cache, Tensor h, Tensor out);
  void feed_forward(const GlmLayer& w, bool dense, Tensor h, Tensor out);
  void gated_mlp(const GlmFeedForward& w, Tensor h, Tensor out, bool accumulate);
  void add_block(const Weight& norm, const Batch& batch, Tensor x,
                 const std::function<void(Tensor h, Tensor d)>& block);
  void hidden_state(int index, Tensor x);
  Tensor scratch(int64_t rows, int64_t cols, DType dtype);

  const GlmConfig config_;
  const GlmWeights& weights_;
  Backend& backend_;
  const int max_rows_;
  const int max_logit_rows_;
  char* arena_ = nullptr;
  size_t arena_size_ = 0;
  size_t arena_used_ = 0;
};

}  // namespace nibble
