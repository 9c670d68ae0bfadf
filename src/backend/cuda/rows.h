// Row operations: embedding, norm, gathering, SwiGLU. Activations are BF16 or F32.
#pragma once

#include <memory>

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

// x += delta (when delta.data); out = x / sqrt(mean(x^2) + eps) * gain
struct Norm {
  Tensor x{}, delta{};
  const float* gain = nullptr;
  float eps = 0;
  Tensor out{};
  // How many blocks have read x, for a kernel in which several make the norm of one row; 0 between
  // launches.
  unsigned* arrived = nullptr;
};
Norm norm_of(Tensor x, Tensor delta, const Weight& gain, float eps, Tensor out);
// Whether rows are aligned and of whole steps of 256 columns, eight at most.
bool is_in_steps(const Norm& norm);
void add_rms_norm(const Context& context, const Norm& norm);

// out[i] = x[logit row i of the step]
void gather_rows(const Context& context, Tensor x, Tensor out);

// out = silu(gate_up[:, :n]) * gate_up[:, n:]
void silu_mul(const Context& context, Tensor gate_up, Tensor out);

}  // namespace nibble::cuda
