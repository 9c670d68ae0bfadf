// Feed: weights' bytes on their way from mapped files to the card. Several threads copy them, page
// faults and all, to pinned buffers, which the card fetches meanwhile.
#pragma once

#include <cstdint>
#include <span>

#include "backend/cuda/staging.h"
#include "base/thread_pool.h"

namespace nibble::cuda {

struct Piece {
  const void* from = nullptr;  // host memory of any kind
  size_t bytes = 0;
  size_t at = 0;  // where it goes, from the start of the target
};

class Feed {
 public:
  Feed();

  // Copies pieces, rising and without overlaps, to the card in order with `stream`. When it
  // returns, what they point to may go. What lies between them gets any bytes.
  void send(void* to, std::span<const Piece> pieces, cudaStream_t stream);
  // The same to host memory, at once.
  void gather(void* to, std::span<const Piece> pieces);

  // Memory of the card for bytes that kernels bring into their final form. More than kRawBytes
  // waits for the card and moves it.
  static constexpr size_t kRawBytes = size_t(32) << 20;
  uint8_t* raw(size_t bytes);

 private:
  void fill(uint8_t* to, std::span<const Piece> pieces, size_t first, size_t count);

  ThreadPool pool_;
  Staging staging_;
  DeviceMemory raw_;
};

}  // namespace nibble::cuda
