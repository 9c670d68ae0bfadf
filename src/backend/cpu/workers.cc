#include "backend/cpu/workers.h"

namespace nibble {
namespace {

enum class Want { kWide, kNarrow, kExact };

#if defined(__x86_64__)
// Of AMX.
Kernel kernel_of_tiles(MultiplyFunction multiply) {
  return {.input = InputFormat::kBF16,
          .multiply = multiply,
          .tile_rows = 32,
          .block_bytes = 1 << 30,  // a strip of columns at a time needs the cache, not whole rows
          .multiplies_tiles = true};
}
#endif

// The tables of kernels.
Kernel best_kernel(PanelFormat format, [[maybe_unused]] const InstructionSets& sets,
                   [[maybe_unused]] Want want) {
  switch (format) {
    case PanelFormat::kBF16:
#if defined(__x86_64__)
      if (sets.amx_bf16 && want == Want::kWide) return kernel_of_tiles(multiply_bf16_amx);
      if (sets.fast_avx512bf16 && want != Want::kExact) {
        return {.input = InputFormat::kBF16, .multiply = multiply_bf16_avx512bf16};
      }
#endif
      return {.input = InputFormat::kF32, .multiply = multiply_f32};
    case PanelFormat::kF32:
      return {.input = InputFormat::kF32, .multiply = multiply_f32};
    case PanelFormat::kNvfp4:
#if defined(__x86_64__)
      if (sets.amx_bf16 && want == Want::kWide) return kernel_of_tiles(multiply_nvfp4_amx);
      if (sets.avx512vbmi)
        return {.input = InputFormat::kSplit16, .multiply = multiply_nvfp4_avx512vbmi};
      if (sets.avx512vnni)
        return {.input = InputFormat::kSplit16, .multiply = multiply_nvfp4_avx512vnni};
      if (!sets.avx512 && sets.avxvnni)
        return {.input = InputFormat::kSplit16, .multiply = multiply_nvfp4_avxvnni};
      if (!sets.avx512 && sets.avx2 && want == Want::kWide) {
        return {
            .input = InputFormat::kInt16, .multiply = multiply_nvfp4_wide_avx2, .least_rows = 6};
      }
      if (!sets.avx512 && sets.avx2)
        return {.input = InputFormat::kSplit16, .multiply = multiply_nvfp4_avx2};
#endif
      return {.input = InputFormat::kInt16, .multiply = multiply_nvfp4};
    case PanelFormat::kNvfp4Columns:
      return {.input = InputFormat::kF32, .multiply = multiply_nvfp4_columns};
    case PanelFormat::kInt8:
#if defined(__x86_64__)
      if (sets.avx512vnni)
        return {.input = InputFormat::kSplit16, .multiply = multiply_int8_avx512vnni};
#endif
      return {.input = InputFormat::kInt16, .multiply = multiply_int8};
  }
  return {};
}

}  // namespace

Workers::Workers(int threads, bool exact)
    : sets_(instruction_sets()),
      pool_(threads > 0 ? threads : num_physical_cores()),
      pieces_(pool_.size()),
      threads_(size_t(pool_.size())) {
  for (int i = 0; i < kPanelFormats; ++i) {
    const PanelFormat format = PanelFormat(i);
    exact_kernels_[i] = best_kernel(format, sets_, Want::kExact);
    kernels_[i] = exact ? exact_kernels_[i] : best_kernel(format, sets_, Want::kNarrow);
    wide_kernels_[i] = exact ? exact_kernels_[i] : best_kernel(format, sets_, Want::kWide);
  }
}

int64_t Workers::wide_rows() const {
  for (int i = 0; i < kPanelFormats; ++i) {
    const InputFormat narrow = kernels_[i].input, wide = wide_kernels_[i].input;
    if (narrow != wide && wide == InputFormat::kBF16) return kWideRows;
  }
  return INT64_MAX;
}

std::string Workers::instruction_set() const {
  std::string name = vector_target_name();
  if (sets_.avx512vnni || (!sets_.avx512 && sets_.avxvnni)) name += "-VNNI";
  if (sets_.fast_avx512bf16) name += "-BF16";
  if (sets_.amx_bf16) name += ", AMX";
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
  const int64_t block = kernel.block_rows(product.w.cols);
  for (int64_t first = 0; first < product.rows; first += block) {
    Product part = product;
    part.x.data += first * product.x.stride_bytes;
    part.out += first * product.out_stride;
    part.rows = std::min(block, product.rows - first);
    kernel.multiply(part, threads_[size_t(thread)].kernel);
  }
}

}  // namespace nibble
