// The products of many rows on Hopper: blocks of 128 matrix rows by 64 or 128 rows of activations,
// 64 matrix rows a warpgroup. Fragments are made in registers from the packed matrix; activations
// come into shared memory as they lie in Order::kSlots (products.h), a unit's columns by one copy.
// Device code of linear and experts.
//
// Where registers allow (128 rows of activations), a warp makes the next unit's fragments while
// this one's are multiplied, and the warpgroups read at their own pace. Of these tiles those of at
// most 64 used rows are multiplied by 64, which of an expert's last ones saves half.
//
// The sum over K is stream.cuh's: the same products in the same order, so each thread holds two
// sums, the slice's and the total.
//
// On an H100, 2,048 rows by 2048 x 10240 in NVFP4: 184 us, 467 TFLOP/s, for which the blocks ask L2
// for 4.7 TB/s of both sides.
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
  static constexpr bool kAhead = kBlocks == 1;  // a unit is decoded while one is multiplied
  static constexpr int kInputBytes = columns * Unit::kInputs * 2;
  static constexpr int kPieceBytes = columns * 16;  // 8 columns of all rows
  static constexpr int kStageBytes = kInputBytes + kTiles * Unit::kBytes;
  static constexpr size_t kSharedBytes = size_t(kStages) * kStageBytes;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  // The fragments of a unit.
  struct Fragments {
    uint32_t a[Unit::kChunks * 4][Unit::kProducts][4];

    __device__ __forceinline__ void decode(const uint8_t* unit) {
      const auto registers = Unit::read(unit, int(threadIdx.x % kWarp));
#pragma unroll
      for (int j = 0; j < Unit::kChunks * 4; ++j) {
#pragma unroll
        for (int p = 0; p < Unit::kProducts; ++p) {
          Unit::fragment(registers, j / 4, j % 4, p, a[j][p]);
        }
      }
    }
  };

  // Begins the products of a unit with the first kUsed columns.
  template <int kUsed>
  static __device__ __forceinline__ void begin_unit(const Fragments& f, const uint8_t* stage,
                                                    bool first, float (&sums)[kUsed / 8][4]) {
    begin_products();
#pragma unroll
    for (int j = 0; j < Unit::kChunks * 4; ++j) {
      const uint64_t b = columns_at(stage + 2 * j * kPieceBytes, kPieceBytes);
#pragma unroll
      for (int p = 0; p < Unit::kProducts; ++p) {
        multiply_async(sums, f.a[j][p], b, j + p > 0 || !first);
      }
    }
    end_products();
  }

  // As multiply(), of which only the first kUsed columns are multiplied.
  template <int kUsed, typename Work>
  static __device__ __forceinline__ void multiply_used(const PackedMatrices& w,
                                                       const Activations& x, const Work& work,
                                                       int matrix, int first_tile, int row_tile,
                                                       int used_columns, uint8_t* shared,
                                                       uint64_t* arrived, uint64_t* read) {
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
    const auto fetch_inputs = [&](int unit, int s) {
      if (unit >= w.units) return;
      arrive_expecting(arrived + s, kInputBytes);
      copy_bulk(shared + s * kStageBytes, inputs + size_t(unit) * kInputBytes, kInputBytes,
                arrived + s);
    };
    for (int s = 0; s < kStages; ++s) fetch_matrix(s, shared + s * kStageBytes);
    __syncthreads();  // the barriers are there
    work.begin();
    if (threadIdx.x == 0) {
      for (int s = 0; s < kStages; ++s) fetch_inputs(s, s);
    }

    float sums[kUsed / 8][4], totals[kUsed / 8][4] = {};
    int done = 0;  // units of the slice
    int s = 0, parity = 0;
    const auto codes = [&](int stage) {
      return shared + stage * kStageBytes + kInputBytes + warp * Unit::kBytes;
    };
    const auto add_unit = [&](int u, Fragments& now, Fragments& next) {
      uint8_t* stage = shared + s * kStageBytes;
      const int after = s + 1 == kStages ? 0 : s + 1;
      if constexpr (!kAhead) wait_for_copies<kStages - 1>();
      wait_for_phase(arrived + s, parity);
      if constexpr (!kAhead) now.decode(codes(s));
      begin_unit<kUsed>(now, stage, done == 0, sums);
      if constexpr (kAhead) {
        wait_for_copies<kStages - 2>();
        if (u + 1 < w.units) next.decode(codes(after));
      }
      wait_for_products(sums);
      if constexpr (kAhead) {
        if (lane == 0) arrive_at(read + s);
        if (threadIdx.x == 0 && u > 0) {  // the stage before, which others may only now have read
          const int before = s == 0 ? kStages - 1 : s - 1;
          wait_for_phase(read + before, s == 0 ? parity ^ 1 : parity);
          fetch_inputs(u - 1 + kStages, before);
        }
      } else {  // few stages: filled again at once
        __syncthreads();
        if (threadIdx.x == 0) fetch_inputs(u + kStages, s);
      }
      fetch_matrix(u + kStages, stage);
      s = after;
      if (s == 0) parity ^= 1;
      if (++done == w.units_per_slice || u + 1 == w.units) {
        done = 0;
#pragma unroll
        for (int n = 0; n < kUsed / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) totals[n][i] += sums[n][i];
        }
      }
    };
    if constexpr (kAhead) {
      Fragments even, odd;
      wait_for_copies<kStages - 1>();
      even.decode(codes(0));
      for (int u = 0; u < w.units; u += 2) {
        add_unit(u, even, odd);
        if (u + 1 < w.units) add_unit(u + 1, odd, even);
      }
    } else {
      for (int u = 0; u < w.units; ++u) {
        Fragments fragments;
        add_unit(u, fragments, fragments);
      }
    }
    if (tile >= w.tiles) return;
    const float* factors = w.factors + size_t(place) * kTileRows + lane / 4;
    const float low_factor = factors[0], high_factor = factors[8];
#pragma unroll
    for (int n = 0; n < kUsed / 8; ++n) {
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const int column = n * 8 + lane % 4 * 2 + odd;
        if (column < used_columns) {
          work.finish({}, tile, lane / 4, column, totals[n][odd] * low_factor,
                      totals[n][2 + odd] * high_factor);
        }
      }
    }
  }
#endif

  // As MmaTiles::multiply(); x: the tile of activations. Once a block.
  template <typename Work>
  static __device__ void multiply(const PackedMatrices& w, const Activations& x, const Work& work,
                                  int matrix, int first_tile, int row_tile, int used_columns,
                                  const int*, uint8_t* shared) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    __shared__ uint64_t arrived[kStages], read[kStages];  // inputs came; all warps read them
    if (threadIdx.x == 0) {
      for (int s = 0; s < kStages; ++s)
        start_barrier(arrived + s, 1), start_barrier(read + s, kWarps);
      publish_barriers();
    }
    if (columns > 64 && used_columns <= 64) {
      return multiply_used<64>(w, x, work, matrix, first_tile, row_tile, used_columns, shared,
                               arrived, read);
    }
    multiply_used<columns>(w, x, work, matrix, first_tile, row_tile, used_columns, shared, arrived,
                           read);
#endif
  }
};

}  // namespace nibble::cuda
