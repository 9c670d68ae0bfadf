#include "backend/cuda/memory.h"

#include <algorithm>

#include "base/error.h"

namespace nibble::cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kChunkBytes = size_t(16) << 20;

size_t aligned(size_t bytes) {
  return (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
}

std::string mebibytes(size_t bytes) {
  return std::to_string((bytes + (size_t(1) << 20) - 1) >> 20) + " MiB";
}

}  // namespace

DeviceMemory::DeviceMemory(size_t bytes) : size_(aligned(bytes)) {
  const cudaError_t error = cudaMalloc(&data_, size_);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // it would be the next call's error, too
  if (error != cudaErrorMemoryAllocation) {
    call_failed(error, "cudaMalloc", __FILE__, __LINE__);
  }
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  throw Error("the card has " + mebibytes(free) + " of its " + mebibytes(total) + " free, " +
              mebibytes(size_) +
              " more are needed; lower --max-model-len, --kv-cache-memory-bytes or "
              "--max-num-batched-tokens, use --kv-cache-dtype fp8, or --device cpu");
}

DeviceMemory::~DeviceMemory() {
  cudaFree(data_);
}

PinnedMemory::PinnedMemory(size_t bytes) : size_(aligned(bytes)) {
  const cudaError_t error = cudaHostAlloc(&data_, size_, cudaHostAllocMapped);
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw Error(mebibytes(size_) +
              " of pinned host memory cannot be had: " + cudaGetErrorString(error));
}

PinnedMemory::~PinnedMemory() {
  cudaFreeHost(data_);
}

void* Arena::allocate(size_t bytes) {
  const size_t size = aligned(bytes);
  auto chunk = std::ranges::find_if(
      chunks_, [&](const Chunk& c) { return c.memory.size() - c.used >= size; });
  if (chunk == chunks_.end()) {
    chunks_.push_back({.memory = DeviceMemory(std::max(size, kChunkBytes))});
    chunk = chunks_.end() - 1;
  }
  void* memory = chunk->memory.as<char>() + chunk->used;
  chunk->used += size;
  return memory;
}

void* Workspace::fit(size_t bytes) {
  if (bytes > memory_.size()) {
    CUDA_CHECK(cudaDeviceSynchronize());
    memory_ = DeviceMemory();
    memory_ = DeviceMemory(bytes);
    ++generation_;
  }
  return memory_.data();
}

}  // namespace nibble::cuda
