// The products of up to 8 rows with many tiles: a warp takes a tile at a time through all of K, so
// that warps never wait for each other. Device code of linear and experts.
//
// Matrix and inputs reach a warp through its ring in shared memory, a unit of columns a stage, each
// lane copying the bytes that it reads back itself. The matrix' part of the first stages is under
// way before the inputs are known.
#pragma once

#include "backend/cuda/stream.cuh"

namespace nibble::cuda {

inline constexpr int kSweepWarps = 8;

// max_columns: a bound on an item's rows of activations.
template <typename Unit, int max_columns>
struct SweepShape {
  // Of 1 KiB of a matrix and more: a multiprocessor has 50 KiB and more under way.
  static constexpr int kStages = Unit::kProducts == 1 ? 4 : 2;
  static constexpr int kInputRowBytes = Unit::kInputs * 2;
  static constexpr int kStageBytes = Unit::kBytes + max_columns * kInputRowBytes;
};

template <typename Unit, int max_columns>
__host__ __device__ constexpr size_t sweep_shared_bytes() {
  using Shape = SweepShape<Unit, max_columns>;
  return size_t(kSweepWarps * Shape::kStages) * Shape::kStageBytes;
}

// Multiplies `items` items from `first` on, the block's warps in turn. Work: as in stream.cuh.
template <typename Unit, int max_columns, typename Work>
__device__ __forceinline__ void sweep_products(const PackedMatrices& w, const Activations& x,
                                               const Work& work, typename Work::Cursor first,
                                               int items, uint8_t* shared) {
  using Cursor = typename Work::Cursor;
  constexpr int kStages = SweepShape<Unit, max_columns>::kStages;
  constexpr int kStageBytes = SweepShape<Unit, max_columns>::kStageBytes;
  constexpr int kPieces = Unit::kChunks * 2;  // of 16 bytes, a lane's inputs of a unit
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int g = lane / 4, t = lane % 4;
  uint8_t* ring = shared + warp * kStages * kStageBytes;

  const int own_items = (items - warp + kSweepWarps - 1) / kSweepWarps;
  if (own_items > 0) first = work.next(first, warp);

  // The next stage to fetch: which it is, and where this lane's bytes of it come from.
  Cursor next = first;
  int unfetched = 0, next_unit = 0, next_row = -1;
  int stage = 0;  // bytes
  const uint8_t* next_data = nullptr;
  const bf16* next_inputs = nullptr;
  const auto locate = [&] {
    if (unfetched <= 0) return;
    next_data =
        w.data + size_t(unsigned(work.matrix(next) * w.tiles + work.tile(next))) * w.tile_bytes;
    next_row = g < min(max_columns, work.columns(next)) ? work.input_row(next, g) : -1;
    next_inputs =
        static_cast<const bf16*>(x.data) + int64_t(max(next_row, 0)) * x.stride + t * kBlockInputs;
  };
  const auto restart = [&] {
    next = first, unfetched = own_items, next_unit = 0, stage = 0, locate();
  };
  const auto advance = [&] {
    stage = stage + kStageBytes == kStages * kStageBytes ? 0 : stage + kStageBytes;
    next_data += Unit::kBytes;
    next_inputs += Unit::kInputs;
    if (++next_unit == w.units) {
      next_unit = 0;
      if (--unfetched > 0) next = work.next(next, kSweepWarps), locate();
    }
  };
  const auto fetch_unit = [&] {
    if (unfetched > 0) Unit::fetch(ring + stage, next_data, lane);
  };
  // Columns that a lane's inputs of the last unit lack.
  const int last_columns = x.cols - (w.units - 1) * Unit::kInputs - t * kBlockInputs;
  const auto fetch_inputs = [&] {
    if (unfetched > 0 && g < max_columns) {
      uint8_t* to = ring + stage + Unit::kBytes + lane * 16;
      const int columns = next_row < 0               ? 0
                          : next_unit + 1 == w.units ? last_columns
                                                     : Unit::kInputs;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        copy_async_16_cached(to + i * max_columns * 64,
                             columns > i / 2 * kChunkInputs
                                 ? next_inputs + i / 2 * kChunkInputs + i % 2 * 8
                                 : static_cast<const bf16*>(x.data),
                             columns > i / 2 * kChunkInputs);
      }
    }
    commit_copies();
  };

  restart();
  for (int s = 0; s < kStages; ++s) fetch_unit(), advance();
  work.begin();
  restart();
  for (int s = 0; s < kStages; ++s) fetch_inputs(), advance();

  Cursor at = first;
  for (int left_items = own_items; left_items > 0; --left_items) {
    const int tile = work.tile(at);
    const float* factors =
        w.factors + size_t(unsigned(work.matrix(at) * w.tiles + tile)) * kTileRows + g;
    const float low_factor = factors[0], high_factor = factors[8];
    float sum[4] = {}, total[4] = {};
    int left = w.units_per_slice;
    for (int unit = 0; unit < w.units; ++unit) {
      wait_for_copies<kStages - 1>();
      const uint8_t* here = ring + stage;
      const auto registers = Unit::read(here, lane);
      uint32_t b[Unit::kChunks][8] = {};
      if (g < max_columns) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
          const uint4 v = *reinterpret_cast<const uint4*>(here + Unit::kBytes +
                                                          i * max_columns * 64 + lane * 16);
          uint32_t* to = b[i / 2] + i % 2 * 4;
          to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
        }
      }
      fetch_unit();
      fetch_inputs();
      advance();
#pragma unroll
      for (int c = 0; c < Unit::kChunks; ++c) multiply_chunk<Unit>(sum, registers, c, b[c]);
      if (--left == 0 || unit + 1 == w.units) {
        left = w.units_per_slice;
#pragma unroll
        for (int i = 0; i < 4; ++i) total[i] += sum[i], sum[i] = 0;
      }
    }
    const int columns = work.columns(at);
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      if (t * 2 + odd < columns) {
        work.finish(at, tile, g, t * 2 + odd, total[odd] * low_factor,
                    total[2 + odd] * high_factor);
      }
    }
    if (left_items > 1) at = work.next(at, kSweepWarps);
  }
}

}  // namespace nibble::cuda
