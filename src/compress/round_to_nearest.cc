#include "compress/round_to_nearest.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "base/error.h"
#include "quant/fp8.h"
#include "quant/nvfp4.h"

namespace nibble {
namespace {

// Gives row `r`: a pointer to values in memory, or `buffer` filled.
using RowReader = std::function<const float*(int64_t r, float* buffer)>;

void encode_row(const float* row, int64_t r, Encoded& out) {
  if (out.precision == Precision::kNvfp4) {
    nvfp4::encode_row(row, out.tensor_scale, out.cols, out.codes.data() + r * out.cols / 2,
                      out.scales.data() + r * out.cols / nvfp4::kBlock);
    return;
  }
  fp8::encode_row(row, out.tensor_scale, out.cols, out.codes.data() + r * out.cols);
}

Encoded round_rows(const RowReader& read, float amax, int64_t rows, int64_t cols,
                   Precision precision, ThreadPool& pool) {
  Encoded out = Encoded::of(precision, rows, cols);
  out.tensor_scale = precision == Precision::kNvfp4 ? nvfp4::global_scale_of(amax)
                     : amax == 0                    ? 1.0f
                                                    : fp8::scale_of(amax);
  pool.run([&](int share) {
    std::vector<float> buffer(static_cast<size_t>(cols));
    const int64_t last = rows * (share + 1) / pool.size();
    for (int64_t r = rows * share / pool.size(); r < last; ++r) {
      encode_row(read(r, buffer.data()), r, out);
    }
  });
  return out;
}

}  // namespace

float checked_amax(const std::string& name, const float* values, int64_t rows, int64_t cols) {
  float amax = 0;
  bool finite = true;
  for (int64_t i = 0; i < rows * cols; ++i) {
    amax = std::max(amax, std::fabs(values[i]));
    finite &= std::fabs(values[i]) <= 3.4028235e38f;
  }
  if (!finite) throw Error(name + ".weight: has a NaN or an infinity; weights must be finite");
  return amax;
}

Encoded round_to_nearest(const Weight& weight, const LinearGroup& group, Precision precision,
                         ThreadPool& pool) {
  std::vector<float> amax(size_t(pool.size()), 0.0f);
  std::vector<std::string> errors(size_t(pool.size()));
  pool.run([&](int share) {
    std::vector<float> buffer(static_cast<size_t>(group.cols));
    float& most = amax[size_t(share)];
    try {
      int64_t begin = 0;
      for (const Linear& linear : group.linears) {
        const int64_t last = linear.rows * (share + 1) / pool.size();
        for (int64_t r = linear.rows * share / pool.size(); r < last; ++r) {
          decode_rows(weight, group, begin + r, 1, buffer.data());
          most = std::max(most, checked_amax(linear.name, buffer.data(), 1, group.cols));
        }
        begin += linear.rows;
      }
    } catch (const Error& e) {
      errors[size_t(share)] = e.what();
    }
  });
  for (const std::string& error : errors) {
    if (!error.empty()) throw Error(error);
  }
  return round_rows(
      [&](int64_t r, float* buffer) {
        decode_rows(weight, group, r, 1, buffer);
        return buffer;
      },
      *std::max_element(amax.begin(), amax.end()), group.rows, group.cols, precision, pool);
}

Encoded round_to_nearest(const float* values, int64_t rows, int64_t cols, Precision precision,
                         ThreadPool& pool) {
  const float amax = checked_amax("matrix", values, rows, cols);
  return round_rows([&](int64_t r, float*) { return values + r * cols; }, amax, rows, cols,
                    precision, pool);
}

}  // namespace nibble
