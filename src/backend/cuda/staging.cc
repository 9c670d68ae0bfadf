#include "backend/cuda/staging.h"

#include <algorithm>
#include <bit>

namespace nibble::cuda {

Staging::~Staging() {
  for (const Buffer& buffer : buffers_) {
    if (buffer.read != nullptr) cudaEventDestroy(buffer.read);
  }
}

void* Staging::next(size_t bytes) {
  current_ = (current_ + 1) % kBuffers;
  Buffer& buffer = buffers_[current_];
  if (buffer.read == nullptr) {
    CUDA_CHECK(cudaEventCreateWithFlags(&buffer.read, cudaEventDisableTiming));
  }
  CUDA_CHECK(cudaEventSynchronize(buffer.read));
  if (bytes > buffer.memory.size()) {
    buffer.memory = PinnedMemory();
    buffer.memory = PinnedMemory(std::bit_ceil(std::max<size_t>(bytes, 4096)));
  }
  return buffer.memory.data();
}

void Staging::send(void* to, size_t bytes, cudaStream_t stream) {
  CUDA_CHECK(
      cudaMemcpyAsync(to, buffers_[current_].memory.data(), bytes, cudaMemcpyHostToDevice, stream));
  keep_until_here(stream);
}

void Staging::keep_until_here(cudaStream_t stream) {
  CUDA_CHECK(cudaEventRecord(buffers_[current_].read, stream));
}

}  // namespace nibble::cuda
