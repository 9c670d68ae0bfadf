// Readback: small arrays from the card to the host while the card goes on.
#pragma once

#include <array>

#include "backend/backend.h"
#include "backend/cuda/launch.h"

namespace nibble::cuda {

class Readback {
 public:
  Readback() = default;
  ~Readback();
  Readback(const Readback&) = delete;
  Readback& operator=(const Readback&) = delete;

  // Copies 32-bit words to a pinned buffer, as an operation like others.
  void start(const Context& context, const void* from, void* host, size_t bytes);
  // Waits for the copy that was started for `host` and hands its bytes over.
  void finish(void* host);

 private:
  struct Copy {
    PinnedMemory pinned{};
    cudaEvent_t done = nullptr;
    void* host = nullptr;  // nullptr: free
    size_t bytes = 0;
  };
  Copy& copy_for(const void* host);

  std::array<Copy, kMostReads> copies_;
};

}  // namespace nibble::cuda
