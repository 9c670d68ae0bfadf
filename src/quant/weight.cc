#include "quant/weight.h"

#include <cstring>

#include "base/check.h"
#include "base/numbers.h"
#include "quant/nvfp4.h"

namespace nibble {
namespace {

void decode_part_row(const WeightPart& part, int64_t r, int64_t cols, float* out) {
  switch (part.format) {
    case Format::kF32:
      std::memcpy(out, part.values + r * cols * 4, size_t(cols) * 4);
      return;
    case Format::kBF16:
      for (int64_t k = 0; k < cols; ++k) {
        uint16_t bits;
        std::memcpy(&bits, part.values + (r * cols + k) * 2, 2);
        out[k] = bf16_to_float(bits);
      }
      return;
    case Format::kNvfp4:
      nvfp4::decode_row(part.values + r * cols / 2, part.block_scales + r * cols / nvfp4::kBlock,
                        part.global_scale, cols, out);
      return;
  }
}

}  // namespace

int64_t storage_bytes(Format format, int64_t rows, int64_t cols) {
  switch (format) {
    case Format::kF32:
      return rows * cols * 4;
    case Format::kBF16:
      return rows * cols * 2;
    case Format::kNvfp4:
      return rows * cols / 2 + rows * cols / nvfp4::kBlock + 4;
  }
  return 0;
}

void decode_row(const Weight& weight, int64_t r, float* out) {
  int64_t first = 0;
  for (const WeightPart& part : weight.parts) {
    if (r < first + part.rows) return decode_part_row(part, r - first, weight.cols, out);
    first += part.rows;
  }
  CHECK(false, "row %ld of %s", long(r), weight.name.c_str());
}

}  // namespace nibble
