#include "backend/cuda/linear.h"

#include "backend/cuda/products.h"

namespace nibble::cuda {

std::shared_ptr<const void> upload_linear(const Uploads& to, const Weight& host) {
  return pack_matrices(to, host, /*halves=*/false);
}

void linear(const Context& context, Tensor x, const Weight& w, Tensor out, bool accumulate) {
  CHECK(x.cols == w.cols && out.cols == w.rows && x.rows == out.rows, "%s", w.name.c_str());
  if (x.rows == 0) return;
  void* memory = context.workspace.fit(inputs_bytes(x));
  const Results results{out.data, out.stride, out.dtype == DType::kF32, accumulate};
  const auto& packed = resident_as<PackedMatrices>(w);
  if (x.rows <= kMaxStreamedRows) {
    linear_stream(context, inputs_of(context, x, memory), packed, results);
  } else {
    linear_tiles(context, x, packed, results, memory);
  }
}

}  // namespace nibble::cuda
