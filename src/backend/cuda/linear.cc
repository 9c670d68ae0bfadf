#include "backend/cuda/linear.h"

#include "backend/cuda/products.h"

namespace nibble::cuda {
namespace {

// Whether streaming the matrix once for each 8 rows takes less time than tiles do.
bool streams(const Context& context, int64_t rows, const PackedMatrices& w) {
  if (rows <= 8 || rows > kMaxStreamedRows) return rows <= 8;
  // Measured on an H100: blocks of 8 tiles, two a multiprocessor, take a unit while this many bytes
  // stream.
  constexpr int64_t kUnitTimeBytes = 2400 << 10;
  const int64_t at_once = 16 * context.device.num_processors;
  const int64_t waves = (w.tiles + at_once - 1) / at_once;
  return (rows + 7) / 8 * w.tiles * w.tile_bytes <= waves * w.units * kUnitTimeBytes;
}

}  // namespace

std::shared_ptr<const void> upload_linear(const Uploads& to, const Weight& host) {
  return pack_matrices(to, host, /*halves=*/false);
}

void linear(const Context& context, Tensor x, const Weight& w, Tensor out, bool accumulate) {
  CHECK(x.cols == w.cols && out.cols == w.rows && x.rows == out.rows, "%s", w.name.c_str());
  if (x.rows == 0) return;
  void* memory = context.workspace.fit(inputs_bytes(x));
  const Results results{out.data, out.stride, out.dtype == DType::kF32, accumulate};
  const auto& packed = resident_as<PackedMatrices>(w);
  if (streams(context, x.rows, packed)) {
    linear_stream(context, inputs_of(context, x, memory), packed, results);
  } else {
    linear_tiles(context, x, packed, results, memory);
  }
}

bool can_multiply_norm(const Norm& norm, const Weight& w) {
  return norm.out.cols == w.cols && can_stream_norm(norm, resident_as<PackedMatrices>(w));
}

void norm_and_linear(const Context& context, const Norm& norm, const Weight& w, Tensor out,
                     bool accumulate) {
  CHECK(norm.out.cols == w.cols && out.cols == w.rows && norm.x.rows == out.rows, "%s",
        w.name.c_str());
  const Results results{out.data, out.stride, out.dtype == DType::kF32, accumulate};
  norm_and_linear_stream(context, norm, resident_as<PackedMatrices>(w), results);
}

}  // namespace nibble::cuda
