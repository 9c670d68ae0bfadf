// The oracle: plain loops, double accumulators, no cleverness. Weights are decoded to FP32 once, at
// upload.
#pragma once

#include "backend/backend.h"

namespace nibble {

class ReferenceBackend : public Backend {
 public:
  std::string description() const override { return "reference: plain loops, one thread"; }

  MachineLimits measure_limits() override { return {}; }  // speed is not its purpose

  void* allocate(size_t bytes) override;
  void free(void* memory) override;
  void write(void* memory, const void* host, size_t bytes) override;
  void read(const void* memory, void* host, size_t bytes) override;
  Weight upload(const Weight& host) override;

  void begin_step(const Batch&) override {}
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
};

}  // namespace nibble
