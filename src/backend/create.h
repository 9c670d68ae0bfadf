// The backends by name.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"

namespace nibble {

struct BackendOptions {
  std::string device = "auto";  // auto | cpu | reference
  int threads = 0;              // cpu: 0 = the machine's physical cores
};

// Throws Error that names the device and the ones there are.
std::unique_ptr<Backend> create_backend(const BackendOptions& options);

}  // namespace nibble
