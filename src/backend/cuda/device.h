// Device: one CUDA card, made ready for kernels. Host code only.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <optional>
#include <string>

namespace nibble::cuda {

// Throws Error that names the call: the card or its driver failed, or memory ran out.
[[noreturn]] void call_failed(cudaError_t error, const char* call, const char* file, int line);

#define CUDA_CHECK(call)                                                  \
  do {                                                                    \
    const cudaError_t cuda_error = (call);                                \
    if (cuda_error != cudaSuccess) {                                      \
      ::nibble::cuda::call_failed(cuda_error, #call, __FILE__, __LINE__); \
    }                                                                     \
  } while (0)

struct Device {
  int index = 0;
  std::string name{};
  int arch = 0;  // compute capability as 10 * major + minor: 90 is an H100
  int num_processors = 0;
  size_t memory_bytes = 0;
  size_t shared_bytes = 0;  // the most shared memory of a block that asks for it
  size_t cache_bytes = 0;   // L2

  // Programmatic dependent launch: a kernel may begin before its predecessor ends.
  bool has_dependent_launch() const { return arch >= 90; }
  // Blocks that reach each other's shared memory.
  bool has_clusters() const { return arch >= 90; }

  // Makes this the calling thread's device.
  void make_current() const;
};

// The first card that open_device() takes. Where a card or a driver is there and is of no use,
// `reason` says why; else it stays as it is.
std::optional<int> first_usable_device(std::string* reason = nullptr);

// Sets up card `index` with a small stack of its threads, which saves the context 200 MB. Throws
// Error for a card that is not there, a driver that is too old, an architecture without kernels.
Device open_device(int index);

}  // namespace nibble::cuda
