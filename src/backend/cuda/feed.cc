#include "backend/cuda/feed.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace nibble::cuda {
namespace {

constexpr size_t kWindowBytes = size_t(16) << 20;  // of a pinned buffer
constexpr size_t kBlockBytes = size_t(256) << 10;  // that a thread copies at a time
constexpr int kMostThreads = 16;                   // more than memory keeps busy

size_t end_of(std::span<const Piece> pieces) {
  return pieces.empty() ? 0 : pieces.back().at + pieces.back().bytes;
}

// Bytes [first, end) of the target, of which `to` is the first.
void copy_range(std::span<const Piece> pieces, size_t first, size_t end, uint8_t* to) {
  auto piece = std::ranges::upper_bound(pieces, first, {}, &Piece::at);
  if (piece != pieces.begin()) --piece;
  for (; piece != pieces.end() && piece->at < end; ++piece) {
    const size_t from = std::max(first, piece->at);
    const size_t last = std::min(end, piece->at + piece->bytes);
    if (from >= last) continue;
    const auto* bytes = static_cast<const uint8_t*>(piece->from) + (from - piece->at);
    std::memcpy(to + (from - first), bytes, last - from);
  }
}

}  // namespace

Feed::Feed() : pool_(std::min(num_physical_cores(), kMostThreads)) {}

void Feed::fill(uint8_t* to, std::span<const Piece> pieces, size_t first, size_t count) {
  if (count <= kBlockBytes) return copy_range(pieces, first, first + count, to);
  std::atomic<size_t> next{0};
  pool_.run([&](int) {
    for (size_t block; (block = next.fetch_add(kBlockBytes)) < count;) {
      const size_t end = std::min(count, block + kBlockBytes);
      copy_range(pieces, first + block, first + end, to + block);
    }
  });
}

void Feed::send(void* to, std::span<const Piece> pieces, cudaStream_t stream) {
  const size_t end = end_of(pieces);
  for (size_t first = 0; first < end; first += kWindowBytes) {
    const size_t count = std::min(kWindowBytes, end - first);
    fill(static_cast<uint8_t*>(staging_.next(count)), pieces, first, count);
    staging_.send(static_cast<uint8_t*>(to) + first, count, stream);
  }
}

uint8_t* Feed::raw(size_t bytes) {
  if (bytes > raw_.size()) {
    CUDA_CHECK(cudaDeviceSynchronize());
    raw_ = DeviceMemory();
    raw_ = DeviceMemory(std::max(bytes, kRawBytes));
  }
  return raw_.as<uint8_t>();
}

void Feed::gather(void* to, std::span<const Piece> pieces) {
  fill(static_cast<uint8_t*>(to), pieces, 0, end_of(pieces));
}

}  // namespace nibble::cuda
