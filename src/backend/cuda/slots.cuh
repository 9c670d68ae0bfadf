// Activations in Order::kSlots (products.h). Device code.
#pragma once

#include "backend/cuda/dtypes.h"
#include "backend/cuda/products.h"
#include "backend/cuda/tile.cuh"

namespace nibble::cuda {

// Where column `k` of row `n` of a tile of `tile_rows` rows lies in it.
__device__ __forceinline__ int slot_of(int n, int k, int tile_rows) {
  const int piece = k / 64 * 8 + k % 16 / 4 * 2 + k / 2 % 2;
  return (piece * tile_rows + n) * 8 + k % 64 / 16 * 2 + k % 2;
}

// Writes piece `piece` of row `n` of a tile from a row of x, zeros where x has no such column or
// `from` is null.
template <typename In>
__device__ __forceinline__ void write_piece(const In* from, int cols, int n, int piece,
                                            int tile_rows, bf16* tile) {
  __align__(16) bf16 values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int k = piece / 8 * 64 + i / 2 * 16 + piece % 8 / 2 * 4 + piece % 2 * 2 + i % 2;
    values[i] = from_float<bf16>(from != nullptr && k < cols ? to_float(from[k]) : 0.0f);
  }
  *reinterpret_cast<uint4*>(tile + (piece * tile_rows + n) * 8) =
      *reinterpret_cast<const uint4*>(values);
}

}  // namespace nibble::cuda
