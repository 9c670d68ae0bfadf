#include "backend/cuda/linear.h"

#include "backend/cuda/products.h"

namespace nibble::cuda {
namespace {

constexpr int64_t kFewRows = 8;

// Whether tiles of 128 outputs by 64 rows would leave multiprocessors without work.
bool has_few_tiles(const Context& context, const PackedMatrices& w) {
  return w.tiles < 8 * context.device.num_processors;
}

}  // namespace

std::shared_ptr<const void> upload_linear(const Uploads& to, const Weight& host) {
  return pack_matrices(to, host, /*halves=*/false);
}

void linear(const Context& context, Tensor x, const Weight& w, Tensor out, bool accumulate) {
  CHECK(x.cols == w.cols && out.cols == w.rows && x.rows == out.rows, "%s", w.name.c_str());
  if (x.rows == 0) return;
  const Results results{out.data, out.stride, out.dtype == DType::kF32, accumulate};
  const auto& packed = resident_as<PackedMatrices>(w);
  void* memory = context.workspace.fit(inputs_bytes(x));
  if (x.rows == 1) {
    linear_row(context, inputs_of(context, x, memory), packed, results);
  } else if (x.rows <= kFewRows) {
    linear_stream(context, inputs_of(context, x, memory), packed, results);
  } else if (x.rows <= kMaxStreamedRows && has_few_tiles(context, packed)) {
    linear_groups(context, inputs_of(context, x, memory), packed, results);
  } else {
    linear_tiles(context, x, packed, results, memory);
  }
}

bool can_multiply_norm(const Norm& norm, const Weight& w) {
  return norm.out.cols == w.cols && can_multiply_norm_row(norm, resident_as<PackedMatrices>(w));
}

void norm_and_linear(const Context& context, const NormedLinear& linear) {
  const Weight& w = *linear.w;
  const Tensor& out = linear.out;
  CHECK(linear.norm.out.cols == w.cols && out.cols == w.rows && linear.norm.x.rows == out.rows,
        "%s", w.name.c_str());
  const Results results{out.data, out.stride, out.dtype == DType::kF32, linear.accumulate};
  norm_and_linear_row(context, linear.norm, resident_as<PackedMatrices>(w), results);
}

}  // namespace nibble::cuda
