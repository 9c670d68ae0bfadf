#include "backend/create.h"

#include "backend/reference/reference_backend.h"
#include "base/error.h"

namespace nibble {

std::unique_ptr<Backend> create_backend(const BackendOptions& options) {
  if (options.device == "reference") return std::make_unique<ReferenceBackend>();
  throw Error("--device " + options.device + ": there is no such device; use reference");
}

}  // namespace nibble
