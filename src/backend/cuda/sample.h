// sample: the next token of every row, and log-probabilities.
#pragma once

#include "backend/backend.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/staging.h"

namespace nibble::cuda {

class Sampler {
 public:
  // As Backend::sample; edits change the logits in place.
  void run(const Context& context, Tensor logits, const SampleBatch& batch, SampleResult out);

 private:
  Staging staging_;  // rows, then edits, which the kernels read there
};

}  // namespace nibble::cuda
