// What linear does with its products, for stream.cuh and tiles.cuh alike. Device code.
#pragma once

#include "backend/cuda/fragments.cuh"

namespace nibble::cuda {

struct LinearWork {
  const PackedMatrices& w;
  Results out;
  int rows = 0;
  int first_row = 0;  // of column 0
  int tiles_an_item = 1;

  __device__ int matrix(int) const { return 0; }
  __device__ int tile(int item, int sub) const { return item * tiles_an_item + sub; }
  __device__ int input_row(int, int n) const { return n < rows ? first_row + n : -1; }
  __device__ int columns(int) const { return rows; }
  __device__ void begin() const {
    let_successor_begin();
    wait_for_predecessor();
  }
  __device__ void finish(int, int tile, int i, int n, float low, float high) const {
    const float* factors = w.factors + tile * kTileRows;
    const int first = row_of(w, tile, i), second = row_of(w, tile, i + 8);
    if (first >= 0) store(out, first_row + n, first, low * factors[i]);
    if (second >= 0) store(out, first_row + n, second, high * factors[i + 8]);
  }
};

}  // namespace nibble::cuda
