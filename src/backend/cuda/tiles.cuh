// The products of many rows on any card: blocks of 32 matrix rows a warp by 64 rows of activations,
// fragments made in registers from the packed matrix, activations through shared memory. Device
// code of linear and experts.
//
// The sum over K is stream.cuh's: the same instruction over the same columns from zero in each
// slice, then the slices in their order. So each thread holds two sums, the slice's and the total.
#pragma once

#include "backend/cuda/fragments.cuh"

namespace nibble::cuda {

// Of a kernel's dynamic shared memory: warpgroups read lines of 128 bytes at once. Where its static
// memory ends 48 bytes behind one, 64 rows of the head take 315 us on an H100, else 237. All
// kernels of a file have the same, since theirs is one name.
inline constexpr int kSharedAlignment = 128;

template <typename Unit>
struct MmaTiles {
  static constexpr Order kOrder = Order::kPlain;
  static constexpr int kColumns = 64;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kTilesAWarp = Unit::kProducts == 1 ? 2 : 1;
  static constexpr int kTiles = kWarps * kTilesAWarp;
  static constexpr int kBlocks = 2;
  static constexpr int kStages = 3;
  static constexpr int kMatrixBytes = kTiles * Unit::kBytes;
  static constexpr int kInputBytes = kColumns * Unit::kInputs * 2;
  static constexpr int kStageBytes = kMatrixBytes + kInputBytes;
  static constexpr size_t kSharedBytes = size_t(kStages) * kStageBytes;

  // Copies one unit's columns of all rows of activations: chunk, row, 16-byte pieces, the pieces of
  // odd rows swapped in pairs so that eight lanes that read together meet eight different banks.
  static __device__ __forceinline__ void fetch_inputs(const Activations& x, const int* rows,
                                                      int unit, uint8_t* shared) {
    constexpr int kPieces = Unit::kInputs / 8;  // of a row
    const auto* data = static_cast<const bf16*>(x.data);
#pragma unroll
    for (int i = 0; i < kColumns * kPieces / kThreads; ++i) {
      const int index = i * kThreads + int(threadIdx.x);
      const int n = index / kPieces, piece = index % kPieces;
      const int column = unit * Unit::kInputs + piece * 8, row = rows[n];
      const bool valid = row >= 0 && column < x.cols;
      copy_async_16(shared + (piece / 8 * kColumns + n) * 128 + ((piece % 8) ^ (n & 1)) * 16,
                    valid ? data + row * x.stride + column : data, valid);
    }
  }

  static __device__ __forceinline__ void fetch_matrix(const uint8_t* const (&tiles)[kTilesAWarp],
                                                      int unit, uint8_t* shared) {
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
#pragma unroll
    for (int m = 0; m < kTilesAWarp; ++m) {
      Unit::fetch(shared + (warp * kTilesAWarp + m) * Unit::kBytes,
                  tiles[m] + size_t(unit) * Unit::kBytes, lane);
    }
  }

  static __device__ __forceinline__ void multiply_stage(const uint8_t* stage,
                                                        float (&sums)[kTilesAWarp][8][4]) {
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    const int g = lane / 4, t = lane % 4;
    typename Unit::Registers r[kTilesAWarp];
#pragma unroll
    for (int m = 0; m < kTilesAWarp; ++m) {
      r[m] = Unit::read(stage + (warp * kTilesAWarp + m) * Unit::kBytes, lane);
    }
    const uint8_t* inputs = stage + kMatrixBytes;
#pragma unroll
    for (int c = 0; c < Unit::kChunks; ++c) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint4 b[8];
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          b[n] = *reinterpret_cast<const uint4*>(inputs + (c * kColumns + n * 8 + g) * 128 +
                                                 ((2 * t + half) ^ (g & 1)) * 16);
        }
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
#pragma unroll
          for (int m = 0; m < kTilesAWarp; ++m) {
#pragma unroll
            for (int p = 0; p < Unit::kProducts; ++p) {
              uint32_t a[4];
              Unit::fragment(r[m], c, 2 * half + odd, p, a);
#pragma unroll
              for (int n = 0; n < 8; ++n) {
                const uint32_t pair[2] = {odd ? b[n].z : b[n].x, odd ? b[n].w : b[n].y};
                multiply_bf16(sums[m][n], a, pair);
              }
            }
          }
        }
      }
    }
  }

  // Multiplies the tiles from `first_tile` on of matrix `matrix` by the activations' rows rows[0 ..
  // used_columns), < 0 beyond; rows in shared memory. Work as in stream.cuh: begin() and finish(),
  // item 0.
  template <typename Work>
  static __device__ void multiply(const PackedMatrices& w, const Activations& x, const Work& work,
                                  int matrix, int first_tile, int, int used_columns,
                                  const int* rows, uint8_t* shared) {
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    int tile[kTilesAWarp];
    const uint8_t* tiles[kTilesAWarp];
#pragma unroll
    for (int m = 0; m < kTilesAWarp; ++m) {
      tile[m] = first_tile + warp * kTilesAWarp + m;
      // Tiles beyond the last are computed from the last and dropped.
      const int64_t place = int64_t(matrix) * w.tiles + min(tile[m], w.tiles - 1);
      tiles[m] = w.data + place * w.units * Unit::kBytes;
    }
    const int ahead = min(w.units, kStages - 1);
    for (int u = 0; u < ahead; ++u) fetch_matrix(tiles, u, shared + u * kStageBytes);
    work.begin();
    for (int u = 0; u < kStages - 1; ++u) {
      if (u < ahead) {
        fetch_inputs(x, rows, u, shared + u * kStageBytes + kMatrixBytes);
      }
      commit_copies();
    }

    float sums[kTilesAWarp][8][4] = {}, totals[kTilesAWarp][8][4] = {};
    int left = w.units_per_slice;
    for (int u = 0; u < w.units; ++u) {
      wait_for_copies<kStages - 2>();
      __syncthreads();
      const int next = u + kStages - 1;
      if (next < w.units) {
        uint8_t* stage = shared + next % kStages * kStageBytes;
        fetch_matrix(tiles, next, stage);
        fetch_inputs(x, rows, next, stage + kMatrixBytes);
      }
      commit_copies();
      multiply_stage(shared + u % kStages * kStageBytes, sums);
      if (--left == 0 || u + 1 == w.units) {
        left = w.units_per_slice;
#pragma unroll
        for (int m = 0; m < kTilesAWarp; ++m) {
#pragma unroll
          for (int n = 0; n < 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) totals[m][n][i] += sums[m][n][i], sums[m][n][i] = 0;
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kTilesAWarp; ++m) {
      if (tile[m] >= w.tiles) continue;
      const float* factors =
          w.factors + (int64_t(matrix) * w.tiles + tile[m]) * kTileRows + lane / 4;
      const float low_factor = factors[0], high_factor = factors[8];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const int column = n * 8 + lane % 4 * 2 + odd;
          if (column < used_columns) {
            work.finish({}, tile[m], lane / 4, column, totals[m][n][odd] * low_factor,
                        totals[m][n][2 + odd] * high_factor);
          }
        }
      }
    }
  }
};

}  // namespace nibble::cuda
