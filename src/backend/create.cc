#include "backend/create.h"

#include <charconv>
#include <optional>

#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"
#include "base/error.h"
#include "base/log.h"

#ifdef NIBBLE_WITH_CUDA
#include "backend/cuda/cuda_backend.h"
#endif

namespace nibble {
namespace {

bool names_cuda(const std::string& device) {
  return device == "cuda" || device.starts_with("cuda:");
}

// The first card of use; warns where there is one of no use.
std::optional<int> find_cuda_device() {
#ifdef NIBBLE_WITH_CUDA
  std::string reason;
  const std::optional<int> index = cuda::first_usable_device(&reason);
  if (!index && !reason.empty()) log_warning("no GPU is used: " + reason);
  return index;
#else
  return std::nullopt;
#endif
}

// The N of cuda:N; for cuda that of the first card of use.
int index_of(const std::string& device) {
  if (device == "cuda") return find_cuda_device().value_or(0);
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
  return cuda::first_usable_device().has_value();
#else
  return false;
#endif
}

std::unique_ptr<Backend> create_backend(const BackendOptions& options) {
  if (options.exact && names_cuda(options.device)) {
    throw Error("--device " + options.device +
                ": does not compute in FP32 throughout; --dtype float32 needs cpu or reference");
  }
  if (names_cuda(options.device)) {
    return create_cuda(index_of(options.device), options.card_memory_bytes);
  }
  if (options.device == "auto" && !options.exact) {
    if (const auto index = find_cuda_device()) {
      return create_cuda(*index, options.card_memory_bytes);
    }
  }
  if (options.device == "auto" || options.device == "cpu") {
    return std::make_unique<CpuBackend>(options.threads, options.exact);
  }
  if (options.device == "reference") return std::make_unique<ReferenceBackend>();
  throw Error("--device " + options.device +
              ": there is no such device; use auto, cpu, cuda, cuda:N or reference");
}

}  // namespace nibble
