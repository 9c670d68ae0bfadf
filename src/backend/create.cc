#include "backend/create.h"

#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"
#include "base/error.h"

namespace nibble {

std::unique_ptr<Backend> create_backend(const BackendOptions& options) {
  if (options.device == "cpu" || options.device == "auto") {
    return std::make_unique<CpuBackend>(options.threads);
  }
  if (options.device == "reference") return std::make_unique<ReferenceBackend>();
  throw Error("--device " + options.device +
              ": there is no such device; use auto, cpu or reference");
}

}  // namespace nibble
