// What linear does with its products, for stream.cuh and tiles.cuh alike. Device code.
#pragma once

#include "backend/cuda/fragments.cuh"

namespace nibble::cuda {

struct LinearWork {
  using Cursor = int;  // the first tile

  const PackedMatrices& w;
  Results out;
  int rows = 0;
  int first_row = 0;  // of column 0
  int tiles_an_item = 1;

  __device__ Cursor next(Cursor at, int items) const { return at + items * tiles_an_item; }
  __device__ Cursor part(Cursor at, int i) const { return at + i; }
  __device__ int matrix(Cursor) const { return 0; }
  __device__ int tile(Cursor at) const { return at; }
  __device__ int columns(Cursor) const { return rows; }
  __device__ int input_row(Cursor, int n) const { return first_row + n; }
  __device__ int items_known() const { return kTileRows * w.tiles; }
  __device__ void begin() const { wait_for_predecessor(); }
  __device__ void finish(Cursor, int tile, int i, int n, float low, float high) const {
    const int row = tile * kTileRows + i;
    if (row < w.rows) store(out, first_row + n, row, low);
    if (row + 8 < w.rows) store(out, first_row + n, row + 8, high);
  }
};

}  // namespace nibble::cuda
