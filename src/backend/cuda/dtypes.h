// From a tensor's dtype to a kernel's type.
#pragma once

#include <cuda_bf16.h>

#include <utility>

#include "base/tensor.h"

namespace nibble::cuda {

// Calls run(T()) with the type of the values: activations are F32 or BF16.
template <typename Run>
void with_activation(DType dtype, Run&& run) {
  if (dtype == DType::kF32) return run(float());
  CHECK(dtype == DType::kBF16, "dtype %d", int(dtype));
  run(__nv_bfloat16());
}

}  // namespace nibble::cuda
