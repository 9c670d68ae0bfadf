// Row operations: embedding, norm, gathering, SwiGLU. Activations are BF16 or F32.
#pragma once

#include <memory>
#include <optional>

#include "backend/cuda/launch.h"
#include "backend/cuda/weights.h"
#include "base/tensor.h"
#include "quant/weight.h"

namespace nibble::cuda {

// Use::kTable: BF16 rows as they are, other formats as FP32. `on_host`: in pinned host memory that
// kernels read over the bus, one row a token.
std::shared_ptr<const void> upload_table(const Uploads& to, const Weight& host, bool on_host);

// out[t] = table[token t of the step]; out F32
void embed(const Context& context, const Weight& table, Tensor out);

// A matrix of results, F32 or BF16.
struct Results {
  void* data = nullptr;
  int64_t stride = 0;
  bool is_f32 = true;
  bool accumulate = false;
};

// out[t] = sum over k of weights[t, k] * products[t, k]: what experts() may leave to be done. Then
// the first num_counters of `counters` are zero.
struct SlotSums {
  Tensor weights{};                 // [T, k] F32
  const float* products = nullptr;  // [T, k, outputs], in the workspace
  int outputs = 0;
  Results out{};
  int* counters = nullptr;
  int num_counters = 0;
};

// x += delta (when delta.data); out = x / sqrt(mean(x^2) + eps) * gain
struct Norm {
  Tensor x{}, delta{};
  const float* gain = nullptr;
  float eps = 0;
  Tensor out{};
  // How many blocks have read x, for a kernel in which several make the norm of one row; 0 between
  // launches.
  unsigned* arrived = nullptr;
  std::optional<SlotSums> delta_sums{};  // to be made first, into delta
};
Norm norm_of(Tensor x, Tensor delta, const Weight& gain, float eps, Tensor out);
// Whether rows are aligned and of whole steps of 256 columns, eight at most.
bool is_in_steps(const Norm& norm);
// Whether the norm, not yet with any, can take the sums along.
bool can_add_sums(const Norm& norm, const SlotSums& sums);
void add_rms_norm(const Context& context, const Norm& norm);

// out[i] = x[logit row i of the step]
void gather_rows(const Context& context, Tensor x, Tensor out);

// out = silu(gate_up[:, :n]) * gate_up[:, n:]
void silu_mul(const Context& context, Tensor gate_up, Tensor out);

}  // namespace nibble::cuda
