// Staging: pinned buffers through which small arrays reach the card while the host goes on.
#pragma once

#include "backend/cuda/memory.h"

namespace nibble::cuda {

class Staging {
 public:
  Staging() = default;
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // A host buffer of at least `bytes` to fill; waits while the card still reads it.
  void* next(size_t bytes);
  // Copies the first `bytes` of that buffer to the card, in order with `stream`.
  void send(void* to, size_t bytes, cudaStream_t stream);
  // In its place, where kernels read the buffer themselves: once they are in `stream`.
  void keep_until_here(cudaStream_t stream);

 private:
  struct Buffer {
    PinnedMemory memory{};
    cudaEvent_t read = nullptr;
  };
  static constexpr int kBuffers = 3;
  Buffer buffers_[kBuffers];
  int current_ = 0;
};

}  // namespace nibble::cuda
