#include "backend/cpu/workers.h"

namespace nibble {
namespace {

// A block of rows in FP32 takes this much of the L2 cache; the panels want the rest.
constexpr int64_t kBlockBytes = 384 << 10;
constexpr int64_t kRowsOfTiles = 60;  // a multiple of the rows of every kernel's tile

// The tables of kernels.
Kernel best_kernel(PanelFormat format, const InstructionSets& sets, bool exact) {
  switch (format) {
    case PanelFormat::kBF16:
#if defined(__x86_64__)
      if (sets.fast_avx512bf16 && !exact) return {InputFormat::kBF16, multiply_bf16_avx512bf16};
#endif
      return {InputFormat::kF32, multiply_f32};
    case PanelFormat::kF32:
      return {InputFormat::kF32, multiply_f32};
    case PanelFormat::kNvfp4:
#if defined(__x86_64__)
      if (sets.avx512vnni) return {InputFormat::kInt16, multiply_nvfp4_avx512vnni};
#endif
      return {InputFormat::kInt16, multiply_nvfp4};
    case PanelFormat::kInt8:
      return {InputFormat::kInt16, multiply_int8};
  }
  return {};
}

}  // namespace

int64_t rows_per_block(int64_t cols) {
  const int64_t rows = kBlockBytes / (cols * int64_t(sizeof(float)));
  if (rows < kRowsOfTiles) return std::max<int64_t>(rows / 12 * 12, 12);
  return std::min<int64_t>(rows / kRowsOfTiles, 4) * kRowsOfTiles;
}

Workers::Workers(int threads, bool exact)
    : sets_(instruction_sets()),
      pool_(threads > 0 ? threads : num_physical_cores()),
      threads_(size_t(pool_.size())) {
  for (int i = 0; i < kPanelFormats; ++i) {
    kernels_[i] = best_kernel(PanelFormat(i), sets_, exact);
    exact_kernels_[i] = best_kernel(PanelFormat(i), sets_, true);
  }
}

std::string Workers::instruction_set() const {
  std::string name = vector_target_name();
  if (sets_.avx512vnni) name += "-VNNI";
  if (sets_.fast_avx512bf16) name += "-BF16";
  return name;
}

InputRows Workers::make_inputs(int thread, const Kernel& kernel, Tensor x, const float* factors) {
  if (kernel.input == InputFormat::kF32) {
    return {static_cast<const uint8_t*>(x.data), x.stride * int64_t(sizeof(float))};
  }
  const int64_t bytes = input_row_bytes(kernel.input, x.cols);
  uint8_t* memory = input_memory(thread, x.rows * bytes);
  for (int64_t r = 0; r < x.rows; ++r) {
    make_input_row(kernel.input, x.row<float>(r), factors, x.cols, memory + r * bytes);
  }
  return {memory, bytes};
}

void Workers::multiply(int thread, const Kernel& kernel, const Product& product) {
  const int64_t block = rows_per_block(product.w.cols);
  for (int64_t first = 0; first < product.rows; first += block) {
    Product part = product;
    part.x.data += first * product.x.stride_bytes;
    part.out += first * product.out_stride;
    part.rows = std::min(block, product.rows - first);
    kernel.multiply(part, threads_[size_t(thread)].kernel);
  }
}

}  // namespace nibble
