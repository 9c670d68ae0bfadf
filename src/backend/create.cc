#include "backend/create.h"

#include <charconv>

#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"
#include "base/error.h"

#ifdef NIBBLE_WITH_CUDA
#include "backend/cuda/cuda_backend.h"
#endif

namespace nibble {
namespace {

bool names_cuda(const std::string& device) {
  return device == "cuda" || device.starts_with("cuda:");
}

// The N of cuda:N; 0 for cuda.
int index_of(const std::string& device) {
  if (device == "cuda") return 0;
  const char* const first = device.data() + 5;
  const char* const last = device.data() + device.size();
  int index = -1;
  const auto [end, error] = std::from_chars(first, last, index);
  if (error != std::errc() || end != last || index < 0) {
    throw Error("--device " + device + ": must be cuda or cuda:N with the number of a device");
  }
  return index;
}

std::unique_ptr<Backend> create_cuda(int index, int64_t memory_bytes) {
#ifdef NIBBLE_WITH_CUDA
  return std::make_unique<CudaBackend>(
      CudaBackend::Options{.device = index, .memory_bytes = memory_bytes});
#else
  (void)memory_bytes;
  throw Error("--device cuda:" + std::to_string(index) +
              ": this build has no CUDA; `make cuda` builds one that has");
#endif
}

}  // namespace

bool has_cuda_device() {
#ifdef NIBBLE_WITH_CUDA
  return cuda::count_devices() > 0;
#else
  return false;
#endif
}

std::unique_ptr<Backend> create_backend(const BackendOptions& options) {
  const bool automatic = options.device == "auto";
  if (options.exact && names_cuda(options.device)) {
    throw Error("--device " + options.device +
                ": does not compute in FP32 throughout; --dtype float32 needs cpu or reference");
  }
  if (names_cuda(options.device) || (automatic && !options.exact && has_cuda_device())) {
    return create_cuda(automatic ? 0 : index_of(options.device), options.card_memory_bytes);
  }
  if (automatic || options.device == "cpu") {
    return std::make_unique<CpuBackend>(options.threads, options.exact);
  }
  if (options.device == "reference") return std::make_unique<ReferenceBackend>();
  throw Error("--device " + options.device +
              ": there is no such device; use auto, cpu, cuda, cuda:N or reference");
}

}  // namespace nibble
