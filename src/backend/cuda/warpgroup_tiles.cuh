// The products of many rows on Hopper: blocks of 128 matrix rows by 64 or 128 rows of activations,
// 64 matrix rows a warpgroup. Fragments are made in registers from the packed matrix; activations
// come into shared memory as they lie in Order::kSlots (products.h), a unit's columns by one copy.
// Device code of linear and experts.
//
// The sum over K is stream.cuh's: the same products in the same order, so each thread holds two
// sums, the slice's and the total.
#pragma once

#include "backend/cuda/fragments.cuh"
#include "backend/cuda/warpgroup.cuh"

namespace nibble::cuda {

template <typename Unit, int columns>
struct WarpgroupTiles {
  static constexpr Order kOrder = Order::kSlots;
  static constexpr int kColumns = columns;
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kTiles = kWarps;  // a tile a warp
  static constexpr int kBlocks = columns == 64 ? 2 : 1;
  static constexpr int kStages = columns == 64 ? 3 : 4;
  static constexpr int kInputBytes = columns * Unit::kInputs * 2;
  static constexpr int kPieceBytes = columns * 16;  // 8 columns of all rows
  static constexpr int kStageBytes = kInputBytes + kTiles * Unit::kBytes;
  static constexpr size_t kSharedBytes = size_t(kStages) * kStageBytes;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  static __device__ __forceinline__ void multiply_stage(const uint8_t* stage, bool first,
                                                        float (&sums)[columns / 8][4]) {
    const int warp = int(threadIdx.x / kWarp), lane = int(threadIdx.x % kWarp);
    const auto registers = Unit::read(stage + kInputBytes + warp * Unit::kBytes, lane);
    uint32_t a[Unit::kChunks * 4][Unit::kProducts][4];
#pragma unroll
    for (int j = 0; j < Unit::kChunks * 4; ++j) {
#pragma unroll
      for (int p = 0; p < Unit::kProducts; ++p) Unit::fragment(registers, j / 4, j % 4, p, a[j][p]);
    }
    begin_products();
#pragma unroll
    for (int j = 0; j < Unit::kChunks * 4; ++j) {
      const uint64_t b = columns_at(stage + 2 * j * kPieceBytes, kPieceBytes);
#pragma unroll
      for (int p = 0; p < Unit::kProducts; ++p) {
        multiply_async(sums, a[j][p], b, j + p > 0 || !first);
      }
    }
    end_products();
    wait_for_products(sums);
  }
#endif

  // As MmaTiles::multiply(); x: the tile of activations.
  template <typename Work>
  static __device__ void multiply(const PackedMatrices& w, const Activations& x, const Work& work,
                                  int matrix, int first_tile, int row_tile, int used_columns,
                                  const int*, uint8_t* shared) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    __shared__ uint64_t arrived[kStages];
    const int warp = int(threadIdx.x / kWarp), lane = int(threadIdx.x % kWarp);
    const int tile = first_tile + warp;
    // Tiles beyond the last are computed from the last and dropped.
    const unsigned place = unsigned(matrix * w.tiles + min(tile, w.tiles - 1));
    const uint8_t* data = w.data + size_t(place) * w.tile_bytes;
    const auto* inputs = static_cast<const uint8_t*>(x.data) +
                         size_t(row_tile) * size_t(x.stride) * columns * sizeof(bf16);
    const auto fetch_matrix = [&](int unit, uint8_t* stage) {
      if (unit < w.units) {
        Unit::fetch(stage + kInputBytes + warp * Unit::kBytes, data + unit * Unit::kBytes, lane);
      }
      commit_copies();
    };
    const auto fetch_inputs = [&](int unit, uint8_t* stage, uint64_t* barrier) {
      if (threadIdx.x == 0 && unit < w.units) {
        arrive_expecting(barrier, kInputBytes);
        copy_bulk(stage, inputs + size_t(unit) * kInputBytes, kInputBytes, barrier);
      }
    };
    if (threadIdx.x == 0) {
      for (int s = 0; s < kStages; ++s) start_barrier(arrived + s, 1);
      publish_barriers();
    }
    for (int s = 0; s < kStages; ++s) fetch_matrix(s, shared + s * kStageBytes);
    __syncthreads();
    work.begin();
    for (int s = 0; s < kStages; ++s) fetch_inputs(s, shared + s * kStageBytes, arrived + s);

    float sums[columns / 8][4], totals[columns / 8][4] = {};
    int done = 0;  // units of the slice
    int s = 0, parity = 0;
    for (int u = 0; u < w.units; ++u) {
      uint8_t* stage = shared + s * kStageBytes;
      wait_for_copies<kStages - 1>();
      wait_for_phase(arrived + s, parity);
      multiply_stage(stage, done == 0, sums);
      __syncthreads();  // the stage has been read
      fetch_inputs(u + kStages, stage, arrived + s);
      fetch_matrix(u + kStages, stage);
      if (++s == kStages) s = 0, parity ^= 1;
      if (++done == w.units_per_slice || u + 1 == w.units) {
        done = 0;
#pragma unroll
        for (int n = 0; n < columns / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) totals[n][i] += sums[n][i];
        }
      }
    }
    if (tile >= w.tiles) return;
    const float* factors = w.factors + size_t(place) * kTileRows + lane / 4;
    const float low_factor = factors[0], high_factor = factors[8];
#pragma unroll
    for (int n = 0; n < columns / 8; ++n) {
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const int column = n * 8 + lane % 4 * 2 + odd;
        if (column < used_columns) {
          work.finish({}, tile, lane / 4, column, totals[n][odd] * low_factor,
                      totals[n][2 + odd] * high_factor);
        }
      }
    }
#endif
  }
};

}  // namespace nibble::cuda
