#include "backend/cuda/readback.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "backend/cuda/transfer.h"
#include "base/check.h"

namespace nibble::cuda {

Readback::~Readback() {
  for (const Copy& copy : copies_) {
    if (copy.done != nullptr) cudaEventDestroy(copy.done);
  }
}

Readback::Copy& Readback::copy_for(const void* host) {
  const auto found = std::ranges::find(copies_, host, &Copy::host);
  CHECK(found != copies_.end(), "too many reads are started, or this one was not");
  return *found;
}

void Readback::start(const Context& context, const void* from, void* host, size_t bytes) {
  Copy& copy = copy_for(nullptr);
  if (copy.done == nullptr) {
    CUDA_CHECK(cudaEventCreateWithFlags(&copy.done, cudaEventDisableTiming));
  }
  if (bytes > copy.pinned.size()) {
    copy.pinned = PinnedMemory();
    copy.pinned = PinnedMemory(std::bit_ceil(std::max<size_t>(bytes, 4096)));
  }
  copy.host = host;
  copy.bytes = bytes;
  leave(context, from, copy.pinned.data(), bytes);
  CUDA_CHECK(cudaEventRecord(copy.done, context.stream));
}

void Readback::finish(void* host) {
  Copy& copy = copy_for(host);
  CUDA_CHECK(cudaEventSynchronize(copy.done));
  if (copy.bytes > 0) std::memcpy(copy.host, copy.pinned.data(), copy.bytes);
  copy.host = nullptr;
}

}  // namespace nibble::cuda
