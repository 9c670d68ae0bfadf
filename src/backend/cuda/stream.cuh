// The products of up to 8 rows with few tiles: the warps of a block share a tile's K, a slice each,
// and the slices' sums meet in shared memory. Device code of linear and head.
//
// A block is `together` row tiles of `slices` warps each; warps beyond look on. Each warp keeps a
// ring of units in flight through all items of its block, so the first units are under way before
// the inputs are known, and keeps its inputs in registers while they stay the same. The warps meet
// after kRound items.
//
// A Work says what to multiply, item by item:
//   Cursor                                           an item
//   Cursor next(cursor, int items)                   the item so many items on
//   Cursor part(cursor, int i)                       of an item its tile i, next() after which is
//                                                    the next item's
//   int matrix(cursor), int tile(cursor)             what to multiply: the first of its tiles
//   int columns(cursor)                              how many rows of activations there are
//   int input_row(cursor, n)                         which they are, n < columns
//   int items_known()                                of how many items matrix() holds before
//   Activations begin()                              waits until they can be read
//   finish(cursor, tile, i, n, low, high)            takes the products of rows i, i + 8 of a tile
#pragma once

#include <algorithm>

#include "backend/cuda/fragments.cuh"

namespace nibble::cuda {

inline constexpr int kRowGroup = 8;  // rows of activations in one product

// kColumns: 1 or 8, a bound on the rows of activations.
template <typename Unit, int kColumns>
struct StreamShape {
  static constexpr bool kOneRow = kColumns == 1;
  static constexpr int kStages = Unit::kStages - (kOneRow || Unit::kStages < 4 ? 0 : 1);
  static constexpr int kRound = kOneRow ? 4 : 2;
  static constexpr int kPartialFloats = kTileRows * kColumns;
  // Blocks a multiprocessor that registers allow: two where there is room, so that the next
  // kernel's blocks can begin beside this one's.
  static constexpr int kBlocks = Unit::kProducts == 1 ? 2 : 1;

  static constexpr size_t shared_bytes(int warps) {
    return size_t(warps) * (kStages * Unit::kBytes + 2 * kRound * kPartialFloats * sizeof(float));
  }
};

// Multiplies `items` items from `first` on, for all tiles of theirs that there are.
template <typename Unit, int kColumns, typename Work>
__device__ __forceinline__ void stream_products(const PackedMatrices& w, const Work& work,
                                                typename Work::Cursor first, int items,
                                                int together, uint8_t* shared) {
  using Shape = StreamShape<Unit, kColumns>;
  using Cursor = typename Work::Cursor;
  constexpr int kRound = Shape::kRound, kFloats = Shape::kPartialFloats;
  constexpr int kResults = 8 * kColumns;  // of a tile, two rows each
  const int thread = int(threadIdx.x);
  const int lane = int(threadIdx.x % kWarp), warp = int(threadIdx.x / kWarp);
  const int warps = together * w.slices;
  const bool takes_part = warp < warps;
  int sub = 0, slice = warp;
  while (slice >= w.slices) slice -= w.slices, ++sub;
  const int first_unit = slice * w.units_per_slice;
  const int end_unit = min(w.units, first_unit + w.units_per_slice);

  uint8_t* ring = shared + 2 * kRound * warps * kFloats * int(sizeof(float)) +
                  warp * Shape::kStages * Unit::kBytes;
  Cursor next = work.part(first, sub);
  int unfetched = takes_part ? items : 0, unit_to_fetch = first_unit, stage = 0;
  const uint8_t* data = nullptr;
  const auto locate = [&] {
    const int tile = work.tile(next);
    data = w.data + size_t(unsigned(work.matrix(next) * w.tiles + tile)) * w.tile_bytes +
           unit_to_fetch * Unit::kBytes;
    if (tile >= w.tiles) data = nullptr;
  };
  const auto fetch = [&] {
    if (unfetched > 0) {
      if (unit_to_fetch == first_unit) locate();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
      if (data != nullptr) Unit::fetch(ring + stage, data, lane);  // registers would be short
#else
      if (data != nullptr) Unit::fetch(ring + stage, data, lane, L2Policy::read_once());
#endif
      data += data == nullptr ? 0 : Unit::kBytes;
      if (++unit_to_fetch == end_unit) {
        unit_to_fetch = first_unit;
        --unfetched;
        next = work.next(next, 1);
      }
    }
    commit_copies();
    stage = stage + Unit::kBytes == Shape::kStages * Unit::kBytes ? 0 : stage + Unit::kBytes;
  };
  const int early = min(Shape::kStages, work.items_known() * (end_unit - first_unit));
#pragma unroll 1
  for (int s = 0; s < early; ++s) fetch();

  // What a thread adds up after a round: rows i and i + 8 of tile `part` of the round's item `of`
  // for one column. The factors of its first are fetched long before.
  struct Place {
    int i, column, part, of;
  };
  const int together_log2 = 31 - __clz(together);
  const auto place_of = [&](int e) -> Place {
    const int tile = int(unsigned(e) / kResults);
    return {e & 7, int(unsigned(e) / 8 % kColumns), tile & (together - 1), tile >> together_log2};
  };
  const auto factors_of = [&](Place place, Cursor at, int count) -> float2 {
    if (place.of >= count) return {};
    at = work.next(at, place.of);
    const int tile = work.tile(at) + place.part;
    if (tile >= w.tiles) return {};
    const float* factors =
        w.factors + size_t(unsigned(work.matrix(at) * w.tiles + tile)) * kTileRows + place.i;
    return {factors[0], factors[8]};
  };
  const int known = min(kRound, min(items, work.items_known()));
  float2 factors = factors_of(place_of(thread), first, known);
#pragma unroll 1
  for (int s = early; s < Shape::kStages; ++s) fetch();
  const Activations x = work.begin();
  if (known < min(kRound, items)) factors = factors_of(place_of(thread), first, min(kRound, items));

  uint32_t inputs[Unit::kChunks][8];
  int inputs_row = -2;
  float* partials = reinterpret_cast<float*>(shared);
  for (Cursor at = first; items > 0; items -= kRound) {
    float* sums = partials + items / kRound % 2 * kRound * warps * kFloats;  // two take turns
    Cursor here = at;
    for (int r = 0; takes_part && r < min(kRound, items); ++r, here = work.next(here, 1)) {
      const int row = int(threadIdx.x % kWarp / 4) < min(kColumns, work.columns(here))
                          ? work.input_row(here, int(threadIdx.x % kWarp / 4))
                          : -1;
      float sum[4] = {};
      for (int unit = first_unit; unit < end_unit; ++unit) {
        if (row != inputs_row || w.units_per_slice > 1) {
#pragma unroll
          for (int c = 0; c < Unit::kChunks; ++c) {
            load_inputs(x, row, unit * Unit::kInputs + c * kChunkInputs + lane % 4 * kBlockInputs,
                        inputs[c]);
          }
          inputs_row = row;
        }
        wait_for_copies<Shape::kStages - 1>();
        const auto registers = Unit::read(ring + stage, lane);
        fetch();
#pragma unroll
        for (int c = 0; c < Unit::kChunks; ++c) multiply_chunk<Unit>(sum, registers, c, inputs[c]);
      }
      float* to = sums + (r * warps + warp) * kFloats;
      if (!Shape::kOneRow) {
        *reinterpret_cast<float4*>(to + lane * 4) = make_float4(sum[0], sum[1], sum[2], sum[3]);
      } else if (lane % 4 == 0) {
        to[lane / 4] = sum[0], to[lane / 4 + 8] = sum[2];
      }
    }
    __syncthreads();
    const int count = min(kRound, items);
    for (int e = thread; e < count * together * kResults; e += int(blockDim.x)) {
      const Place place = place_of(e);
      const Cursor mine = work.next(at, place.of);
      const int tile = work.tile(mine) + place.part;
      if (tile >= w.tiles || place.column >= work.columns(mine)) continue;
      // Where the fragments' lanes left (i, column) and (i + 8, column).
      const float* from =
          sums + (place.of * warps + place.part * w.slices) * kFloats +
          (Shape::kOneRow ? place.i : (place.i * 4 + (place.column >> 1)) * 4 + (place.column & 1));
      constexpr int kHigh = Shape::kOneRow ? 8 : 2;
      float low = 0, high = 0;
#pragma unroll
      for (int s = 0; s < kMaxSlices; ++s) {
        if (s < w.slices) low += from[s * kFloats], high += from[s * kFloats + kHigh];
      }
      const float2 f = e == thread ? factors : factors_of(place, at, count);
      work.finish(mine, tile, place.i, place.column, low * f.x, high * f.y);
    }
    at = work.next(at, kRound);
    factors = factors_of(place_of(thread), at, min(kRound, items - kRound));
  }
}

}  // namespace nibble::cuda
