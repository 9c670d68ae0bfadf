// Weight: a named stack of matrices. Its rows come from parts, each a matrix of the checkpoint in
// one storage format; so merged projections (q_a over kv_a, gate over up) and stacked experts are
// single weights without a copy, and mixed formats need no special case.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/tensor.h"

namespace nibble {

// The only list of storage formats.
//   kF32, kBF16  values row-major
//   kNvfp4       values: 2 codes a byte, low nibble = even column; block_scales: one E4M3 per 16
//                columns, row-major; value = e2m1 * e4m3 * global_scale            (nvfp4.h)
//   kFp8         values: one code a byte; value = e4m3 * global_scale              (fp8.h)
//   kInt4        values: 2 codes a byte, low nibble = even column; block_scales: one float per
//                group_size columns, row-major; value = (nibble - 8) * scale       (int4.h)
enum class Format : uint8_t { kF32, kBF16, kNvfp4, kFp8, kInt4 };

// What the model does with a weight, so that a backend can choose its layout at upload.
enum class Use : uint8_t {
  kLinear,        // count 1: out = x w^T
  kHead,          // count 1: the linear of the logits, see Backend::linear
  kRouter,        // count 1: scores of the experts, always in FP32
  kExperts,       // count E: one matrix an expert
  kGatedExperts,  // the same: rows of a gate, then as many rows that it gates
  kTable,         // count 1: rows are looked up
  kVector,        // one row: norm gain, router bias
  kLatentUp,      // count = heads, rows = nope + value, see MlaShape: kv_b
};

struct WeightPart {
  Format format = Format::kF32;
  int64_t rows = 0;
  const uint8_t* values = nullptr;        // not owned: the checkpoint's mapped file
  const uint8_t* block_scales = nullptr;  // kNvfp4, kInt4
  float global_scale = 1.0f;              // kNvfp4, kFp8
  int group_size = 0;                     // kInt4
  DType group_scale_dtype = DType::kF32;  // kInt4: of block_scales, see stored_float()
  // Null, or [cols] factors of the input, which were divided out of the columns before rounding:
  // out = w (x * input_scales). The same for all rows of the part.
  const uint8_t* input_scales = nullptr;
  DType input_scale_dtype = DType::kF32;  // see stored_float()
};

struct Weight {
  std::string name{};  // name of the model's weight: key of statistics and of error messages
  Use use = Use::kLinear;
  int64_t count = 1;                // matrices in the stack
  int64_t rows = 0;                 // output features of one matrix
  int64_t cols = 0;                 // input features
  std::vector<WeightPart> parts{};  // their rows add up to count * rows
  int64_t key_rows = 0;             // kLatentUp: the first rows of a matrix: they make keys
  bool mapped = false;              // parts lie in a mapping of a file, whose pages can be dropped
  // Keeps the mapped files alive that `parts` point into.
  std::shared_ptr<const void> source{};
  // The layout that the backend which uploaded the weight made for itself. Opaque to all others.
  std::shared_ptr<const void> resident{};

  bool empty() const { return rows == 0; }
  int64_t total_rows() const { return count * rows; }
};

// Rows [first, first + count) of the stack as parts of their own, pointing to the same bytes.
std::vector<WeightPart> slice_rows(const Weight& weight, int64_t first, int64_t count);

// Bytes of the weight as stored, scales included.
int64_t storage_bytes(const Weight& weight);

// Writes row `r` of the stack (0 .. total_rows() - 1) as `cols` floats, input scales multiplied
// into the columns. The scalar truth that every fast kernel is tested against. Code times block
// scale is exact; the global scale, then the input scale are one rounding to FP32 each.
void decode_row(const Weight& weight, int64_t r, float* out);

}  // namespace nibble
