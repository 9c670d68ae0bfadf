#include "backend/cuda/step_arrays.h"

#include <algorithm>
#include <bit>

#include "backend/cuda/transfer.h"
#include "base/check.h"

namespace nibble::cuda {
namespace {

// The arrays in their order in memory; each of the first five has room for `row_capacity` rows.
//   segments | tokens | positions | row_segment | logit_rows | pages
template <typename Base>
struct Layout {
  Layout(Base* memory, size_t row_capacity) {
    segments = reinterpret_cast<Segment*>(memory);
    tokens = reinterpret_cast<int32_t*>(segments + row_capacity);
    positions = tokens + row_capacity;
    row_segment = positions + row_capacity;
    logit_rows = row_segment + row_capacity;
    pages = logit_rows + row_capacity;
  }
  Segment* segments;
  int32_t *tokens, *positions, *row_segment, *logit_rows, *pages;
};

constexpr size_t kRowBytes = sizeof(Segment) + 4 * sizeof(int32_t);
constexpr size_t kSmallestCapacity = 64;

// A power of two; or a fourth of the way to the next, where blocks for splits that no row has would
// take a noticeable time, and steps or lengths are so long that recording more often does not.
int bound_of(int length, int rows) {
  constexpr int kFewRows = 8, kLong = 8192;
  const int power = int(std::bit_ceil(unsigned(length)));
  if (rows <= kFewRows && length <= kLong) return power;
  const int step = power / 8;
  return (length + step - 1) / step * step;
}

}  // namespace

size_t StepArrays::bytes() const {
  return row_capacity_ * kRowBytes + page_capacity_ * sizeof(int32_t);
}

void StepArrays::grow(const Batch& batch) {
  const size_t rows = std::max(batch.tokens.size(), batch.segments.size());
  if (rows <= row_capacity_ && batch.pages.size() <= page_capacity_) return;
  CUDA_CHECK(cudaDeviceSynchronize());
  row_capacity_ = std::max(row_capacity_, std::bit_ceil(std::max(rows, kSmallestCapacity)));
  page_capacity_ =
      std::max(page_capacity_, std::bit_ceil(std::max(batch.pages.size(), kSmallestCapacity)));
  memory_ = DeviceMemory();
  memory_ = DeviceMemory(bytes());
  const Layout<char> on_device(memory_.as<char>(), row_capacity_);
  view_.segments = on_device.segments;
  view_.tokens = on_device.tokens;
  view_.positions = on_device.positions;
  view_.row_segment = on_device.row_segment;
  view_.logit_rows = on_device.logit_rows;
  view_.pages = on_device.pages;
  ++generation_;
}

void StepArrays::fill(const Batch& batch, const Context& context) {
  grow(batch);
  view_.chosen = batch.chosen;
  view_.rows = batch.rows();
  view_.num_segments = int(batch.segments.size());
  view_.num_logit_rows = int(batch.logit_rows.size());
  view_.is_decode = true;
  int longest = 512;

  char* const start = static_cast<char*>(staging_.next(bytes()));
  const Layout<char> host(start, row_capacity_);
  std::ranges::copy(batch.segments, host.segments);
  std::ranges::copy(batch.tokens, host.tokens);
  std::ranges::copy(batch.logit_rows, host.logit_rows);
  std::ranges::copy(batch.pages, host.pages);
  for (size_t s = 0; s < batch.segments.size(); ++s) {
    const Segment& segment = batch.segments[s];
    CHECK(segment.first_row >= 0 && segment.first_row + segment.num_rows <= batch.rows(),
          "segment %zu", s);
    for (int i = 0; i < segment.num_rows; ++i) {
      host.positions[segment.first_row + i] = segment.context + i;
      host.row_segment[segment.first_row + i] = int32_t(s);
    }
    view_.is_decode &= segment.num_rows == 1 && !segment.expanded;
    longest = std::max(longest, segment.context + segment.num_rows);
  }
  view_.length_bound = bound_of(longest, batch.rows());
  const auto span = [&](const auto* from, size_t count) -> ByteSpan {
    const size_t first = size_t(reinterpret_cast<const char*>(from) - start);
    return {first, (count * sizeof(*from) + 15) / 16 * 16};
  };
  const size_t rows = batch.tokens.size();
  const ByteSpan spans[] = {span(host.segments, batch.segments.size()),
                            span(host.tokens, rows),
                            span(host.positions, rows),
                            span(host.row_segment, rows),
                            span(host.logit_rows, batch.logit_rows.size()),
                            span(host.pages, batch.pages.size())};
  bring(context, memory_.data(), start, spans);
  staging_.keep_until_here(context.stream);
}

}  // namespace nibble::cuda
