#include "checkpoint/weight_reader.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "quant/nvfp4.h"

namespace nibble {
namespace {

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

bool is_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

// Scales for quantized activations and caches.
bool is_activation_scale(const std::string& name) {
  for (const char* suffix : {".input_scale", ".input_global_scale", ".output_scale", ".k_scale",
                             ".v_scale", ".q_scale", ".prob_scale"}) {
    if (name.ends_with(suffix)) return true;
  }
  return false;
}

}  // namespace

void WeightReader::fail(const std::string& name, const std::string& what) const {
  throw Error((checkpoint_.folder() / name).string() + ": " + what);
}

const StoredTensor& WeightReader::take_any_shape(const std::string& name) {
  const StoredTensor* tensor = checkpoint_.find(name);
  if (tensor == nullptr) fail(name, "the checkpoint has no such tensor");
  used_.insert(name);
  return *tensor;
}

const StoredTensor& WeightReader::take(const std::string& name, std::span<const int64_t> shape) {
  const StoredTensor& tensor = take_any_shape(name);
  if (!std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end())) {
    fail(name, "shape " + shape_text(tensor.shape) + ", but config.json says " + shape_text(shape));
  }
  return tensor;
}

const StoredTensor& WeightReader::take(const std::string& name, std::span<const int64_t> shape,
                                       DType dtype) {
  const StoredTensor& tensor = take(name, shape);
  if (tensor.dtype != dtype) {
    fail(name, std::string("has dtype ") + dtype_name(tensor.dtype) + "; it must be " +
                   dtype_name(dtype));
  }
  return tensor;
}

float WeightReader::scalar(const std::string& name) {
  const StoredTensor& tensor = take_any_shape(name);
  if (tensor.dtype != DType::kF32 || tensor.num_elements() != 1) {
    fail(name, std::string("is ") + dtype_name(tensor.dtype) + " " + shape_text(tensor.shape) +
                   "; it must be one F32 value (scales per channel or block are not supported)");
  }
  float value;
  std::memcpy(&value, tensor.data, sizeof(value));
  if (!(value >= 0) || std::isinf(value)) {
    fail(name, "is " + std::to_string(value) + "; it must be a number and not negative");
  }
  return value;
}

// What some exporters make of a tensor of zeros: a scale of 0, and codes or scales divided by it.
void WeightReader::refuse_nan(const std::string& name, const StoredTensor& codes) const {
  const bool found = std::any_of(codes.data, codes.data + codes.size_bytes,
                                 [](uint8_t code) { return (code & 0x7f) == 0x7f; });
  if (found) {
    fail(name,
         "holds values that are not numbers beside a scale of 0: the tensor was all zeros when "
         "it was quantized; quantize it again");
  }
}

WeightPart WeightReader::values(const std::string& name, std::span<const int64_t> shape,
                                int64_t rows) {
  const StoredTensor& tensor = take(name, shape);
  if (tensor.dtype != DType::kBF16 && tensor.dtype != DType::kF32) {
    fail(name, std::string("has dtype ") + dtype_name(tensor.dtype) +
                   ", which is not supported here; BF16 and F32 are");
  }
  return {.format = tensor.dtype == DType::kF32 ? Format::kF32 : Format::kBF16,
          .rows = rows,
          .values = tensor.data};
}

WeightPart WeightReader::nvfp4(const std::string& name, const std::string& codes, float scale,
                               int64_t rows, int64_t cols) {
  if (cols % nvfp4::kBlock != 0) fail(codes, "NVFP4 needs columns in blocks of 16");
  const StoredTensor& scales =
      take(name + ".weight_scale", std::array{rows, cols / nvfp4::kBlock}, DType::kF8E4M3);
  if (scale == 0) refuse_nan(name + ".weight_scale", scales);
  return {.format = Format::kNvfp4,
          .rows = rows,
          .values = take(codes, std::array{rows, cols / 2}, DType::kU8).data,
          .block_scales = scales.data,
          .global_scale = scale};
}

WeightPart WeightReader::fp8(const std::string& name, int64_t rows, int64_t cols) {
  const StoredTensor& codes = take(name + ".weight", std::array{rows, cols}, DType::kF8E4M3);
  const float scale = scalar(name + ".weight_scale");
  if (scale == 0) refuse_nan(name + ".weight", codes);
  return {.format = Format::kFp8, .rows = rows, .values = codes.data, .global_scale = scale};
}

WeightPart WeightReader::int4(const std::string& name, int64_t rows, int64_t cols) {
  for (const char* other : {".weight_zero_point", ".weight_g_idx"}) {
    if (has(name + other)) {
      fail(name + other,
           "is not supported; INT4 must be symmetric, its groups of columns in order");
    }
  }
  if (cols % 8 != 0) fail(name + ".weight_packed", "INT4 needs columns in words of 8");
  const StoredTensor& shape = take(name + ".weight_shape", std::array{int64_t(2)}, DType::kI64);
  std::array<int64_t, 2> stored{};
  std::memcpy(stored.data(), shape.data, sizeof(stored));
  if (stored != std::array{rows, cols}) {
    fail(name + ".weight_shape", "is " + shape_text(stored) + ", but config.json says " +
                                     shape_text(std::array{rows, cols}));
  }
  const StoredTensor& scales = take_any_shape(name + ".weight_scale");
  const int64_t groups = scales.shape.size() == 2 ? scales.shape[1] : 0;
  if (groups <= 0 || scales.shape[0] != rows || cols % groups != 0 || cols / groups % 2 != 0) {
    fail(name + ".weight_scale", "shape " + shape_text(scales.shape) +
                                     "; it must have a row for each of " + std::to_string(rows) +
                                     " and groups that divide " + std::to_string(cols) +
                                     " columns evenly");
  }
  if (!is_float(scales.dtype)) {
    fail(name + ".weight_scale",
         std::string("has dtype ") + dtype_name(scales.dtype) + "; it must be BF16, F16 or F32");
  }
  return {.format = Format::kInt4,
          .rows = rows,
          .values = take(name + ".weight_packed", std::array{rows, cols / 8}, DType::kI32).data,
          .block_scales = scales.data,
          .group_size = int(cols / groups),
          .group_scale_dtype = scales.dtype};
}

WeightPart WeightReader::layout(const std::string& name, int64_t rows, int64_t cols) {
  const StoredTensor* plain = checkpoint_.find(name + ".weight");
  const StoredTensor* packed = checkpoint_.find(name + ".weight_packed");
  if (plain != nullptr && packed != nullptr) {
    fail(name + ".weight_packed", "stands beside " + name + ".weight; only one can be right");
  }
  if (packed != nullptr && packed->dtype == DType::kI32) return int4(name, rows, cols);
  if (packed != nullptr) {
    const std::string reciprocal = name + ".weight_global_scale";
    const float scale = 1 / scalar(reciprocal);
    if (std::isinf(scale)) fail(reciprocal, "is too small: it divides the values");
    return nvfp4(name, name + ".weight_packed", scale, rows, cols);
  }
  if (plain != nullptr && plain->dtype == DType::kU8) {
    return nvfp4(name, name + ".weight", scalar(name + ".weight_scale_2"), rows, cols);
  }
  if (plain != nullptr && plain->dtype == DType::kF8E4M3) return fp8(name, rows, cols);
  return values(name + ".weight", std::array{rows, cols}, rows);
}

void WeightReader::read_input_scales(const std::string& name, int64_t cols, WeightPart& part) {
  const std::string scales = name + ".pre_quant_scale";
  if (!has(scales)) return;
  const StoredTensor& tensor = take(scales, std::array{cols});
  if (!is_float(tensor.dtype)) {
    fail(scales,
         std::string("has dtype ") + dtype_name(tensor.dtype) + "; it must be BF16, F16 or F32");
  }
  part.input_scales = tensor.data;
  part.input_scale_dtype = tensor.dtype;
}

WeightPart WeightReader::linear(const std::string& name, int64_t rows, int64_t cols,
                                bool is_listed) {
  WeightPart part = layout(name, rows, cols);
  read_input_scales(name, cols, part);
  quantization_.check(
      {.name = name, .format = part.format, .group_size = part.group_size, .is_listed = is_listed});
  return part;
}

WeightPart WeightReader::table(const std::string& name, int64_t rows, int64_t cols) {
  WeightPart part = layout(name, rows, cols);
  if (quantization_.scales_embedding_twice() && has(name + ".input_scale")) {
    part.global_scale *= scalar(name + ".input_scale");
  }
  return part;
}

void WeightReader::report_unused(const std::function<bool(const std::string&)>& is_known) const {
  std::vector<std::string> unused;
  for (const auto& [name, tensor] : checkpoint_.tensors()) {
    if (used_.contains(name) || is_activation_scale(name) || is_known(name)) continue;
    unused.push_back(name);
  }
  if (unused.empty()) return;
  std::string text;
  for (size_t i = 0; i < unused.size() && i < 8; ++i) text += (i ? ", " : "") + unused[i];
  log_warning("the checkpoint has " + std::to_string(unused.size()) +
              " tensors that this model does not use: " + text +
              (unused.size() > 8 ? ", ..." : ""));
}

}  // namespace nibble
