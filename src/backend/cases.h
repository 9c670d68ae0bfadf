// The cases of every operation, read by backend_test (against reference/) and backend_bench: shapes
// with remainders, one row, no row, the pocket model's and the real model's. And what both need to
// run them: random weights and tensors, and tolerances derived from dtype and K.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace nibble {

struct LinearCase {
  int64_t rows, outputs, inputs;
  Format format;
  bool accumulate = false;
  bool input_scales = false;
};

struct ExpertsCase {
  int64_t rows;
  int num_experts, top_k;
  int64_t hidden, width;
  Format format;
  bool input_scales = false;
};

struct AttentionCase {
  int heads;
  KvFormat kv_format;
  int page_size;
  std::vector<std::pair<int, int>> segments;  // (context, rows)
  Format format = Format::kBF16;              // of kv_b
  bool input_scales = false;                  // of kv_b
  bool expanded = false;                      // of all segments
};

MlaShape mla_shape(const AttentionCase& c);  // the real model's, of so many heads

std::vector<LinearCase> linear_cases();
std::vector<ExpertsCase> experts_cases();
std::vector<AttentionCase> attention_cases();

// A weight that owns its random bytes: values of about N(0, 1/cols); quantized formats with random
// codes and block scales, and different global and, where asked for, input scales in each of two
// parts.
Weight random_weight(const std::string& name, Use use, Format format, int64_t count, int64_t rows,
                     int64_t cols, std::mt19937& random, bool input_scales = false);

// A weight of one row that owns these values, as FP32.
Weight float_weight(const std::string& name, std::vector<float> values);

// A matrix in a backend's memory: FP32, BF16 or 32-bit integers.
class DeviceMatrix {
 public:
  DeviceMatrix(Backend& backend, int64_t rows, int64_t cols, DType dtype = DType::kF32);
  // Rounds the values to `dtype`.
  DeviceMatrix(Backend& backend, int64_t rows, int64_t cols, const std::vector<float>& values,
               DType dtype = DType::kF32);
  ~DeviceMatrix();
  DeviceMatrix(const DeviceMatrix&) = delete;
  DeviceMatrix& operator=(const DeviceMatrix&) = delete;

  Tensor tensor() const { return tensor_; }
  std::vector<float> floats() const;
  std::vector<int32_t> ints() const;

 private:
  Backend& backend_;
  Tensor tensor_;
};

std::vector<float> random_floats(int64_t count, std::mt19937& random, float scale = 1.0f);

// Values that `dtype` has: what a backend with such activations and reference/ can both be given.
std::vector<float> random_activations(int64_t count, DType dtype, std::mt19937& random,
                                      float scale = 1.0f);

// Backends that tests name: devices of create_backend() with two threads, and "cpu_exact".
std::unique_ptr<Backend> test_backend(const std::string& name);
// Whether this machine has the device of that backend.
bool is_here(const std::string& name);

// Bound on the error of a sum of K products in FP32, in any order, with inputs x rounded to the
// given dtype: (K + 2) * 2^-24 of the sum of magnitudes |w| |x|, and
//   kBF16  2^-8 more (half an ulp is 2^-9; the result's own rounding and the second order fit in
//          the rest)
//   kI16   relative to norm(w) norm(x), which is no less: the inputs are off by half a step each,
//          the step being max|x| / 32639, so by sqrt(K) / 65278 of norm(x) together
double product_error(int64_t inputs, DType input_dtype);

// Bound on the relative error of storing a result: half an ulp of BF16, nothing for FP32, whose
// rounding the other bounds have in them.
double storage_error(DType dtype);

// The largest relative error that a backend's exp, reciprocal and square root may have.
inline constexpr double kFunctionError = 1e-6;

}  // namespace nibble
