// The backends by name.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"

namespace nibble {

struct BackendOptions {
  std::string device = "auto";  // auto | cpu | cuda | cuda:N | reference
  int threads = 0;              // cpu: 0 = the machine's physical cores
  // cuda: the embedding in pinned host memory, of which a step reads a row a token.
  bool table_on_host = false;
};

// auto: the first CUDA card where there is one, else the CPU. Throws Error that names the device
// and the ones there are, or what the card lacks.
std::unique_ptr<Backend> create_backend(const BackendOptions& options);

// Whether create_backend("cuda") can work: the build has it, and the driver shows a card.
bool has_cuda_device();

}  // namespace nibble
