// The matrix products behind linear and experts, by number of rows; all give a row the same bits.
// And inputs and results in the form that they take.
#pragma once

#include "backend/cuda/launch.h"
#include "backend/cuda/packed.h"
#include "backend/cuda/rows.h"
#include "base/tensor.h"

namespace nibble::cuda {

// How activations lie in memory:
//   kPlain  row-major
//   kSlots  as a warpgroup's products read them: tiles of 64 or 128 rows; in a tile, chunks of 64
//           columns; in a chunk, 8 pieces of 8 columns of all rows, row by row. Column
//           16 t + 4 j + 2 h + b of a chunk is number 2 t + b of piece 2 j + h: product j's slots
//           of packed.h. Columns are padded with zeros to a multiple of 128.
enum class Order : uint8_t { kPlain, kSlots };

constexpr int64_t padded_columns(int64_t cols) {
  return (cols + 127) / 128 * 128;
}

// BF16 activations, aligned to 16 bytes; cols is a multiple of 16. kSlots: stride is the number of
// padded columns.
struct Activations {
  const void* data = nullptr;
  int64_t stride = 0;
  int rows = 0, cols = 0;
};

// Up to this many rows, products are bound by reading the matrix.
inline constexpr int kMaxStreamedRows = 64;

// Bytes that inputs_of() and slot_inputs() may need of their memory.
size_t inputs_bytes(const Tensor& x);
// x as it is, where it is BF16 and its rows are aligned; else rounded to BF16 into `memory`, its
// columns padded with zeros.
Activations inputs_of(const Context& context, const Tensor& x, void* memory);

// Row-major x in kSlots, in tiles of `tile_rows`, into `memory`.
Activations slot_inputs(const Context& context, const Tensor& x, int tile_rows, void* memory);

// What linear_tiles() and experts_tiles() take their activations as.
Order order_of_tiles(const Context& context);

// out (+)= x w^T: for one row; for 1 .. kMaxStreamedRows; for as many where the matrix has too few
// tiles for linear_tiles(); for any number.
void linear_row(const Context& context, const Activations& x, const PackedMatrices& w,
                const Results& out);
void linear_stream(const Context& context, const Activations& x, const PackedMatrices& w,
                   const Results& out);
void linear_groups(const Context& context, const Activations& x, const PackedMatrices& w,
                   const Results& out);
// `memory`: inputs_bytes().
void linear_tiles(const Context& context, const Tensor& x, const PackedMatrices& w,
                  const Results& out, void* memory);

// linear_row() of a norm's output, which is stored, too, as is x + delta.
bool can_multiply_norm_row(const Norm& norm, const PackedMatrices& w);
void norm_and_linear_row(const Context& context, const Norm& norm, const PackedMatrices& w,
                         const Results& out);

}  // namespace nibble::cuda
