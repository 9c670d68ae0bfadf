#include "compress/encoded.h"

#include "base/check.h"
#include "base/numbers.h"
#include "quant/nvfp4.h"

namespace nibble {

Encoded Encoded::of(Precision precision, int64_t rows, int64_t cols) {
  Encoded encoded{.precision = precision, .rows = rows, .cols = cols};
  if (precision == Precision::kNvfp4) {
    encoded.codes.resize(size_t(rows * cols / 2));
    encoded.scales.resize(size_t(rows * cols / nvfp4::kBlock));
  } else {
    CHECK(precision == Precision::kFp8, "kept linears are not encoded");
    encoded.codes.resize(size_t(rows * cols));
  }
  return encoded;
}

void Encoded::decode_row(int64_t r, float* out) const {
  if (precision == Precision::kNvfp4) {
    nvfp4::decode_row(codes.data() + r * cols / 2, scales.data() + r * cols / nvfp4::kBlock,
                      tensor_scale, cols, out);
    return;
  }
  for (int64_t k = 0; k < cols; ++k) {
    out[k] = e4m3_to_float(codes[size_t(r * cols + k)]) * tensor_scale;
  }
}

}  // namespace nibble
