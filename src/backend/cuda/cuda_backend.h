// The backend of a CUDA card. Every operation is a launch into one stream.
//
// Activations between matrices are BF16, the tensor cores' input: half the bytes, and a product's
// input is rounded once, where it is written. The residual stream, sums over K, the router and the
// logits are FP32.
#pragma once

#include <optional>
#include <unordered_map>

#include "backend/backend.h"
#include "backend/cuda/feed.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/mla.h"
#include "backend/cuda/readback.h"
#include "backend/cuda/replay.h"
#include "backend/cuda/route.h"
#include "backend/cuda/rows.h"
#include "backend/cuda/sample.h"

namespace nibble {

class CudaBackend : public Backend {
 public:
  struct Options {
    int device = 0;
    // What the process may take of the card; 0: all. With little of it the embedding and
    // the head's BF16 rows stay in pinned host memory.
    int64_t memory_bytes = 0;
  };
  // Throws Error when the card cannot be used.
  explicit CudaBackend(const Options& options);
  ~CudaBackend() override;

  std::string description() const override;
  MachineLimits measure_limits() override;
  MemoryState memory() const override;
  bool is_card() const override { return true; }
  DType activation_dtype() const override { return DType::kBF16; }
  DType product_input_dtype(Format) const override { return DType::kBF16; }

  void* allocate(size_t bytes) override;
  void free(void* memory) override;
  void write(void* memory, const void* host, size_t bytes) override;
  void read(const void* memory, void* host, size_t bytes) override;
  void start_read(const void* memory, void* host, size_t bytes) override;
  void finish_read(void* host) override;
  bool runs_behind() const override { return true; }
  Weight upload(const Weight& host) override;

  void begin_step(const Batch& batch) override;
  void replay(uint64_t key, const std::function<void()>& step) override;

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
  bool is_short_of_memory() const;
  // Launches what is held back, and makes the card the calling thread's.
  cuda::Context context();
  cuda::Context context_as_is();

  const Options options_;
  const cuda::Device device_;
  cudaStream_t stream_ = nullptr;
  cuda::Arena weights_;
  std::optional<cuda::Feed> feed_;  // from the first upload to the next step
  cuda::Workspace workspace_;
  cuda::StepArrays step_;
  cuda::Replay replay_;
  // Held back until the next operation, which may take them into its own kernel.
  std::optional<cuda::Norm> norm_;
  std::optional<cuda::NormedLinear> linear_;
  std::optional<cuda::NormedRoute> route_;
  std::optional<cuda::Store> store_;
  std::optional<cuda::SlotSums> sums_;
  cuda::DeviceMemory arrived_;   // Norm::arrived
  cuda::DeviceMemory counters_;  // Context::counters
  bool serializes_ = false;      // Context::serializes
  int recorded_generation_ = 0;
  cuda::Sampler sampler_;
  cuda::PinnedMemory read_buffer_;
  cuda::Readback readback_;
  std::unordered_map<void*, cuda::DeviceMemory> allocations_;
};

}  // namespace nibble
