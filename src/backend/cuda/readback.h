// Readback: small arrays from the card to the host while the card goes on.
#pragma once

#include <array>

#include "backend/backend.h"
#include "backend/cuda/memory.h"

namespace nibble::cuda {

class Readback {
 public:
  Readback() = default;
  ~Readback();
  Readback(const Readback&) = delete;
  Readback& operator=(const Readback&) = delete;

  // Copies to a pinned buffer, in order with `stream`.
  void start(const void* from, void* host, size_t bytes, cudaStream_t stream);
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
