// CalibratingBackend: a backend that lets others see the inputs of weights while another backend
// computes. It takes stacks of experts apart into one linear an expert, so that each expert's
// inputs can be seen; weights that it runs must be uploaded through it.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "compress/kept_array.h"

namespace nibble {

// The input rows of a weight in one step, on the host.
struct ObservedInputs {
  const Weight& weight;
  int expert = -1;           // of a stack of experts: rows are those routed to it
  const float* x = nullptr;  // [rows, cols], contiguous; valid during the call
  int64_t rows = 0;
  int64_t cols = 0;
  // Of experts: each row's token in the batch and its routing weight, [rows]. Others: null, row r
  // is token r.
  const int32_t* tokens = nullptr;
  const float* routing = nullptr;
};

class CalibratingBackend : public Backend {
 public:
  using Observer = std::function<void(const ObservedInputs&)>;

  // `inner` must outlive it and hold activations in FP32.
  explicit CalibratingBackend(Backend& inner);

  // From now on the observer is shown the inputs of the weights with these names; of kv_b these are
  // the latents after their norm. With `stop`, products with these weights are left out, and so is
  // whatever a step does after all of them were seen: its results are undefined.
  void watch(std::set<std::string> names, bool stop, Observer observer);
  // The next step begins with the linear of this name, whose inputs are `x` [rows, cols]; what
  // comes before is left out.
  void start_at(const std::string& name, const float* x);

  std::string description() const override { return inner_.description(); }
  MachineLimits measure_limits() override { return inner_.measure_limits(); }
  MemoryState memory() const override { return inner_.memory(); }
  bool is_card() const override { return inner_.is_card(); }
  DType product_input_dtype(Format format) const override {
    return inner_.product_input_dtype(format);
  }
  void* allocate(size_t bytes) override { return inner_.allocate(bytes); }
  void free(void* memory) override { inner_.free(memory); }
  void write(void* memory, const void* host, size_t bytes) override {
    inner_.write(memory, host, bytes);
  }
  void read(const void* memory, void* host, size_t bytes) override {
    inner_.read(memory, host, bytes);
  }
  void start_read(const void* memory, void* host, size_t bytes) override {
    inner_.start_read(memory, host, bytes);
  }
  void finish_read(void* host) override { inner_.finish_read(host); }
  bool runs_behind() const override { return inner_.runs_behind(); }
  Weight upload(const Weight& host) override;
  void begin_step(const Batch& batch) override;
  // Never records: observers decide on data.
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
  // Device memory that grows and is kept.
  struct Buffer {
    void* data = nullptr;
    size_t bytes = 0;
  };
  struct ExpertRows {
    std::vector<int32_t> rows{};
    std::vector<float> weights{};
  };

  bool watches(const Weight& weight) const { return names_.contains(weight.name); }
  bool skips() const { return stopped_ || !start_.empty(); }
  void observe(const ObservedInputs& inputs);
  void mark_seen(const Weight& weight);
  Tensor buffer(Buffer& buffer, int64_t rows, int64_t cols);
  // The tensor's values in `host`, [rows, cols].
  const float* to_host(Tensor tensor, KeptArray<float>& host);
  std::vector<ExpertRows> rows_of_experts(const Routing& routing, int64_t num_experts);
  void run_expert(int expert, const ExpertRows& chosen, const float* x, const Weight& gate_up,
                  const Weight& down, bool to_the_end, float* sum);

  Backend& inner_;
  std::set<std::string> names_{}, seen_{};
  Observer observer_{};
  bool stop_ = false;
  bool stopped_ = false;  // for the rest of this step
  std::string start_{};   // the linear that this step waits for
  const float* start_inputs_ = nullptr;
  std::vector<std::shared_ptr<void>> memory_{};
  Buffer latent_{}, x_{}, gate_up_{}, inner_rows_{}, out_{};
  KeptArray<float> seen_rows_{}, expert_rows_{}, all_rows_{}, sums_{}, routing_{};  // on the host
};

}  // namespace nibble
