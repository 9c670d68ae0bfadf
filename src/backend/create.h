// The backends by name.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"

namespace nibble {

struct BackendOptions {
  std::string device = "auto";  // auto | cpu | cuda | cuda:N | reference
  int threads = 0;              // cpu: 0 = the machine's physical cores
  bool exact = false;           // products of FP32 inputs and exact weights, at any price; no cuda
  // cuda: what the process may take of the card; 0: all of it. With less than 24 GiB the embedding
  // and the BF16 rows of the head stay in pinned host memory, of which a step reads few.
  int64_t card_memory_bytes = 0;
};

// auto: the first CUDA card where there is one and `exact` is not asked for, else the CPU. Throws
// Error that names the device and the ones there are, or what the card lacks.
std::unique_ptr<Backend> create_backend(const BackendOptions& options);

// Whether create_backend("cuda") can work: the build has it, and the driver shows a card.
bool has_cuda_device();

}  // namespace nibble
