// WeightReader: matrices and vectors out of a checkpoint, by name, in whatever layout they are.
//
// A linear's layout is decided from its tensors, N rows, K columns:
//   BF16, F32             weight [N, K]
//   NVFP4, ModelOpt       weight U8 [N, K/2], weight_scale E4M3 [N, K/16], weight_scale_2 F32
//   NVFP4, compressed-    weight_packed U8 [N, K/2], weight_scale E4M3 [N, K/16],
//     tensors             weight_global_scale F32: the reciprocal of weight_scale_2
//   FP8                   weight E4M3 [N, K], weight_scale F32
//   INT4, compressed-     weight_packed I32 [N, K/8], weight_scale [N, K/group] BF16, F16 or F32,
//     tensors             weight_shape I64 [2]
// and pre_quant_scale [K] with any of them. Scales of activations (input_scale, k_scale, ...) are
// left alone: activations are not quantized here.
#pragma once

#include <functional>
#include <set>
#include <span>
#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/quantization_config.h"
#include "quant/weight.h"

namespace nibble {

class WeightReader {
 public:
  // Both must outlive the reader.
  WeightReader(const Checkpoint& checkpoint, const QuantizationConfig& quantization)
      : checkpoint_(checkpoint), quantization_(quantization) {}

  const Checkpoint& checkpoint() const { return checkpoint_; }
  bool has(const std::string& tensor) const { return checkpoint_.find(tensor) != nullptr; }

  // All throw Error that names the tensor that is missing or has another shape, dtype or value than
  // it must have, and where it contradicts the quantization config.
  // The tensor `name` as plain values: BF16 or F32.
  WeightPart values(const std::string& name, std::span<const int64_t> shape, int64_t rows);
  // The linear `name` in its layout. `is_listed`: see FoundLinear.
  WeightPart linear(const std::string& name, int64_t rows, int64_t cols, bool is_listed);
  // The embedding `name`: as a linear, but rows are looked up.
  WeightPart table(const std::string& name, int64_t rows, int64_t cols);

  // Says once which tensors nothing asked for and `is_known` does not know.
  void report_unused(const std::function<bool(const std::string&)>& is_known) const;

 private:
  WeightPart layout(const std::string& name, int64_t rows, int64_t cols);
  WeightPart nvfp4(const std::string& name, const std::string& codes, float scale, int64_t rows,
                   int64_t cols);
  WeightPart fp8(const std::string& name, int64_t rows, int64_t cols);
  WeightPart int4(const std::string& name, int64_t rows, int64_t cols);
  void read_input_scales(const std::string& name, int64_t cols, WeightPart& part);
  const StoredTensor& take(const std::string& name, std::span<const int64_t> shape);
  const StoredTensor& take_any_shape(const std::string& name);
  const StoredTensor& take(const std::string& name, std::span<const int64_t> shape, DType dtype);
  float scalar(const std::string& name);
  void refuse_nan(const std::string& name, const StoredTensor& codes) const;
  [[noreturn]] void fail(const std::string& name, const std::string& what) const;

  const Checkpoint& checkpoint_;
  const QuantizationConfig& quantization_;
  std::set<std::string> used_;
};

}  // namespace nibble
