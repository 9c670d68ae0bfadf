#include "backend/cpu/workers.h"

#include "backend/cpu/instruction_sets.h"

namespace nibble {
namespace {

// The table of products, the best first.
MultiplyFunction best_multiply() {
#if defined(__x86_64__)
  if (has_fast_avx512bf16()) return multiply_bf16_avx512bf16;
#endif
  return multiply_f32;
}

// A block of rows in FP32 takes this much of the L2 cache; the panels want the rest.
constexpr int64_t kBlockBytes = 384 << 10;
constexpr int64_t kRowsOfTiles = 30;  // a multiple of the rows of every kernel's tile

}  // namespace

int64_t rows_per_block(int64_t cols) {
  const int64_t rows = kBlockBytes / (cols * int64_t(sizeof(float)));
  if (rows < kRowsOfTiles) return std::max<int64_t>(rows, kRowsOfTiles / 3);
  return std::min<int64_t>(rows / kRowsOfTiles, 8) * kRowsOfTiles;
}

Workers::Workers(int threads, bool exact)
    : pool_(threads > 0 ? threads : num_physical_cores()),
      multiply_(exact ? multiply_f32 : best_multiply()),
      pairs_(size_t(pool_.size())) {}

std::string Workers::instruction_set() const {
  return rounds_inputs() ? "AVX512-BF16" : vector_target_name();
}

void Workers::multiply_in_blocks(MultiplyFunction function, int thread, const Product& product) {
  const int64_t block = rows_per_block(product.w.cols);
  for (int64_t first = 0; first < product.rows; first += block) {
    Product part = product;
    part.x += first;
    part.out += first;
    part.rows = std::min(block, product.rows - first);
    function(part, pairs_[size_t(thread)]);
  }
}

void Workers::multiply(int thread, const Product& product) {
  const bool f32 = product.w.format == PanelFormat::kF32;
  multiply_in_blocks(f32 ? multiply_f32 : multiply_, thread, product);
}

void Workers::multiply_exactly(int thread, const Product& product) {
  multiply_in_blocks(multiply_f32, thread, product);
}

}  // namespace nibble
