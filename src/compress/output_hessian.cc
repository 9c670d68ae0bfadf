#include "compress/output_hessian.h"

#include "compress/matrix_product.h"

namespace nibble {
namespace {

std::vector<float> decode(const Weight& weight, ThreadPool& pool) {
  const int64_t rows = weight.count * weight.rows;
  std::vector<float> values(size_t(rows * weight.cols));
  pool.parallel_for(rows,
                    [&](int64_t r) { decode_row(weight, r, values.data() + r * weight.cols); });
  return values;
}

// Of the outputs that `reader` [rows, stride] multiplies with its columns from `column` on.
OutputHessian hessian_of(int64_t first, int64_t size, const float* reader, int64_t rows,
                         int64_t stride, int64_t column, ThreadPool& pool) {
  OutputHessian hessian{
      .first = first, .size = size, .values = std::vector<float>(size_t(size * size))};
  const Operand<float> columns{.data = reader + column, .depth_stride = stride};
  add_product({.x = columns,
               .y = columns,
               .out = hessian.values.data(),
               .out_stride = size,
               .rows = size,
               .cols = size,
               .depth = rows},
              pool);
  return hessian;
}

}  // namespace

std::vector<OutputHessian> output_hessians(const LinearGroup& group, const GlmLayer& original,
                                           const GlmConfig& config, ThreadPool& pool) {
  std::vector<OutputHessian> hessians;
  if (group.site == Site::kQkvA) {
    std::vector<float> reader = decode(original.kv_b, pool);
    const std::vector<float> gain = decode(original.kv_norm, pool);
    const int64_t rank = config.kv_rank, rows = int64_t(reader.size()) / rank;
    pool.parallel_for(rows, [&](int64_t r) {
      for (int64_t k = 0; k < rank; ++k) reader[size_t(r * rank + k)] *= gain[size_t(k)];
    });
    hessians.push_back(hessian_of(config.q_rank, rank, reader.data(), rows, rank, 0, pool));
  } else if (group.site == Site::kKvB) {
    const std::vector<float> reader = decode(original.o, pool);
    const int64_t size = config.value_dim, rows = config.nope_dim + size;
    for (int64_t head = 0; head < config.heads; ++head) {
      hessians.push_back(hessian_of(head * rows + config.nope_dim, size, reader.data(),
                                    original.o.rows, original.o.cols, head * size, pool));
    }
  }
  return hessians;
}

}  // namespace nibble
