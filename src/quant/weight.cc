#include "quant/weight.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/numbers.h"
#include "quant/fp8.h"
#include "quant/int4.h"
#include "quant/nvfp4.h"
#include "quant/stored_float.h"

namespace nibble {
namespace {

// Of an INT4 part's group scales.
int64_t scale_row_bytes(const WeightPart& part, int64_t cols) {
  return cols / part.group_size * int64_t(dtype_bytes(part.group_scale_dtype));
}

void multiply_input_scales(const WeightPart& part, int64_t cols, float* row) {
  for (int64_t k = 0; k < cols; ++k) {
    row[k] *= stored_float(part.input_scales, part.input_scale_dtype, k);
  }
}

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
    case Format::kFp8:
      fp8::decode_row(part.values + r * cols, part.global_scale, cols, out);
      return;
    case Format::kInt4:
      int4::decode_row(part.values + r * cols / 2,
                       part.block_scales + r * scale_row_bytes(part, cols), part.group_scale_dtype,
                       part.group_size, cols, out);
      return;
  }
}

int64_t part_bytes(const WeightPart& part, int64_t cols) {
  const int64_t inputs =
      part.input_scales == nullptr ? 0 : cols * int64_t(dtype_bytes(part.input_scale_dtype));
  switch (part.format) {
    case Format::kF32:
      return part.rows * cols * 4 + inputs;
    case Format::kBF16:
      return part.rows * cols * 2 + inputs;
    case Format::kNvfp4:
      return part.rows * cols / 2 + part.rows * cols / nvfp4::kBlock + 4 + inputs;
    case Format::kFp8:
      return part.rows * cols + 4 + inputs;
    case Format::kInt4:
      return part.rows * cols / 2 + part.rows * scale_row_bytes(part, cols) + inputs;
  }
  return 0;
}

WeightPart slice_part(WeightPart part, int64_t first, int64_t count, int64_t cols) {
  switch (part.format) {
    case Format::kF32:
      part.values += first * cols * 4;
      break;
    case Format::kBF16:
      part.values += first * cols * 2;
      break;
    case Format::kNvfp4:
      part.values += first * cols / 2;
      part.block_scales += first * cols / nvfp4::kBlock;
      break;
    case Format::kFp8:
      part.values += first * cols;
      break;
    case Format::kInt4:
      part.values += first * cols / 2;
      part.block_scales += first * scale_row_bytes(part, cols);
      break;
  }
  part.rows = count;
  return part;
}

}  // namespace

std::vector<WeightPart> slice_rows(const Weight& weight, int64_t first, int64_t count) {
  std::vector<WeightPart> slices;
  for (const WeightPart& part : weight.parts) {
    if (count == 0) break;
    if (first >= part.rows) {
      first -= part.rows;
      continue;
    }
    const int64_t taken = std::min(count, part.rows - first);
    slices.push_back(slice_part(part, first, taken, weight.cols));
    count -= taken;
    first = 0;
  }
  CHECK(count == 0, "%s has fewer rows", weight.name.c_str());
  return slices;
}

int64_t storage_bytes(const Weight& weight) {
  int64_t bytes = 0;
  for (const WeightPart& part : weight.parts) bytes += part_bytes(part, weight.cols);
  return bytes;
}

void decode_row(const Weight& weight, int64_t r, float* out) {
  int64_t first = 0;
  for (const WeightPart& part : weight.parts) {
    if (r < first + part.rows) {
      decode_part_row(part, r - first, weight.cols, out);
      if (part.input_scales != nullptr) multiply_input_scales(part, weight.cols, out);
      return;
    }
    first += part.rows;
  }
  CHECK(false, "row %ld of %s", long(r), weight.name.c_str());
}

}  // namespace nibble
