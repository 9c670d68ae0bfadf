#include "backend/cuda/weights.h"

#include <algorithm>

namespace nibble::cuda {

std::shared_ptr<const void> upload_rows(const Uploads& to, const Weight& host) {
  constexpr int64_t kChunkValues = int64_t(1) << 20;
  const int64_t rows = host.total_rows(), cols = host.cols;
  float* data = static_cast<float*>(to.arena.allocate(size_t(rows * cols) * sizeof(float)));
  const int64_t rows_a_chunk = std::max<int64_t>(1, kChunkValues / cols);
  std::vector<float> chunk(size_t(std::min(rows, rows_a_chunk) * cols));
  for (int64_t first = 0; first < rows; first += rows_a_chunk) {
    const int64_t count = std::min(rows_a_chunk, rows - first);
    for (int64_t r = 0; r < count; ++r) decode_row(host, first + r, chunk.data() + r * cols);
    const Piece piece{.from = chunk.data(), .bytes = size_t(count * cols) * sizeof(float)};
    to.feed.send(data + first * cols, {&piece, 1}, to.stream);
  }
  return std::make_shared<DeviceRows>(DeviceRows{.data = data});
}

}  // namespace nibble::cuda
