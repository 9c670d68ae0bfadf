#include "backend/cuda/staging.h"

#include <algorithm>
#include <bit>

namespace nibble::cuda {

Staging::~Staging() {
  for (const Buffer& buffer : buffers_) {
    if (buffer.copied != nullptr) cudaEventDestroy(buffer.copied);
  }
}

void* Staging::next(size_t bytes) {
  current_ = (current_ + 1) % kBuffers;
  Buffer& buffer = buffers_[current_];
  if (buffer.copied == nullptr) {
    CUDA_CHECK(cudaEventCreateWithFlags(&buffer.copied, cudaEventDisableTiming));
  }
  CUDA_CHECK(cudaEventSynchronize(buffer.copied));
  if (bytes > buffer.memory.size()) {
    buffer.memory = PinnedMemory();
    buffer.memory = PinnedMemory(std::bit_ceil(std::max<size_t>(bytes, 4096)));
  }
  return buffer.memory.data();
}

void Staging::send(void* to, size_t bytes, cudaStream_t stream) {
  Buffer& buffer = buffers_[current_];
  CUDA_CHECK(cudaMemcpyAsync(to, buffer.memory.data(), bytes, cudaMemcpyHostToDevice, stream));
  CUDA_CHECK(cudaEventRecord(buffer.copied, stream));
}

}  // namespace nibble::cuda
