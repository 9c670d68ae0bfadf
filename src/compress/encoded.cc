#include "compress/encoded.h"

#include "base/check.h"
#include "quant/fp8.h"
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

WeightPart Encoded::part() const {
  WeightPart part{.format = precision == Precision::kNvfp4 ? Format::kNvfp4 : Format::kFp8,
                  .rows = rows,
                  .values = codes.data(),
                  .block_scales = scales.empty() ? nullptr : scales.data(),
                  .global_scale = tensor_scale};
  if (!input_scale.empty()) {
    part.input_scales = reinterpret_cast<const uint8_t*>(input_scale.data());
    part.input_scale_dtype = DType::kBF16;
  }
  return part;
}

void Encoded::decode_row(int64_t r, float* out) const {
  if (precision == Precision::kNvfp4) {
    nvfp4::decode_row(codes.data() + r * cols / 2, scales.data() + r * cols / nvfp4::kBlock,
                      tensor_scale, cols, out);
  } else {
    fp8::decode_row(codes.data() + r * cols, tensor_scale, cols, out);
  }
}

}  // namespace nibble
