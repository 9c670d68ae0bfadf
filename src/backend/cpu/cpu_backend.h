// The backend of the machine's own cores: packed weights, vector kernels, a pool of threads.
#pragma once

#include <memory>
#include <unordered_map>

#include "backend/backend.h"
#include "backend/cpu/experts.h"
#include "backend/cpu/linear.h"
#include "backend/cpu/mla_attention.h"
#include "backend/cpu/mla_store.h"
#include "backend/cpu/route.h"
#include "backend/cpu/sample.h"

namespace nibble {

class CpuBackend : public Backend {
 public:
  // 0 threads: the machine's physical cores. `exact`: no input of a product is ever rounded.
  explicit CpuBackend(int threads, bool exact = false);

  std::string description() const override;
  MachineLimits measure_limits() override;
  int64_t wide_rows() const override { return workers_.wide_rows(); }
  int expanded_tokens() const override { return 128; }
  DType product_input_dtype(Format format) const override;

  void* allocate(size_t bytes) override;
  void free(void* memory) override;
  void write(void* memory, const void* host, size_t bytes) override;
  void read(const void* memory, void* host, size_t bytes) override;
  Weight upload(const Weight& host) override;

  void begin_step(const Batch& batch) override;
  void replay(uint64_t, const std::function<void()>& step) override { step(); }

  void embed(const Weight& table, const Batch& batch, Tensor out) override;
  void add_rms_norm(Tensor x, Tensor delta, const Weight& gain, float eps, Tensor out) override;
  void gather_rows(Tensor x, const Batch& batch, Tensor out) override;
  void linear(Tensor x, const Weight& w, Tensor out, bool accumulate) override;
  void silu_mul(Tensor gate_up, Tensor out) override;
  void mla_store(Tensor kv, const Weight& gain, const MlaShape& shape, const Batch& batch,
                 const KvLayer& cache) override;
  void mla_attention(Tensor q, const Weight& kv_b, const MlaShape& shape, const Batch& batch,
                     const KvLayer& cache, Tensor out) override;
  void route(Tensor x, const Weight& router, const Weight& bias, const RouterShape& shape,
             Routing out) override;
  void experts(Tensor x, const Routing& routing, const Weight& gate_up, const Weight& down,
               Tensor out) override;
  void sample(Tensor logits, const SampleBatch& rows, SampleResult out) override;

 private:
  const bool exact_;
  Workers workers_;
  Arena weights_;
  std::unordered_map<void*, std::unique_ptr<PageMemory>> allocations_;
  int64_t positions_ = 0;  // of the batch at hand: 1 + the highest
  RopeTable rope_;
  CpuLinear linear_;
  MlaStore mla_store_;
  MlaAttention mla_attention_;
  CpuRouter router_;
  Experts experts_;
  CpuSampler sampler_;
};

}  // namespace nibble
