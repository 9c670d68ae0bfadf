// The matrix products behind linear and experts, by number of rows; all give a row the same bits.
// And inputs and results in the form that they take.
#pragma once

#include "backend/cuda/launch.h"
#include "backend/cuda/packed.h"
#include "base/tensor.h"

namespace nibble::cuda {

// Rows of activations, each aligned to 16 bytes; cols is a multiple of 16.
struct Activations {
  const void* data = nullptr;
  int64_t stride = 0;
  int rows = 0, cols = 0;
  bool is_f32 = false;  // else BF16
};

// A matrix of results, F32 or BF16.
struct Results {
  void* data = nullptr;
  int64_t stride = 0;
  bool is_f32 = true;
  bool accumulate = false;
};

// Up to this many rows, products are bound by reading the matrix.
inline constexpr int kMaxStreamedRows = 64;

// Bytes that inputs_of() may need of its memory.
size_t inputs_bytes(const Tensor& x);
// x as it is, where its rows are aligned and BF16 or (with `allow_f32`) F32; else rounded to BF16
// into `memory`, its columns padded with zeros.
Activations inputs_of(const Context& context, const Tensor& x, bool allow_f32, void* memory);

// out (+)= x w^T, for 1 .. kMaxStreamedRows rows and for any number.
void linear_stream(const Context& context, const Activations& x, const PackedMatrices& w,
                   const Results& out);
void linear_tiles(const Context& context, const Activations& x, const PackedMatrices& w,
                  const Results& out);

}  // namespace nibble::cuda
