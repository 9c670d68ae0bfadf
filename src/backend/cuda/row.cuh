// The products of one row: a block takes items of `together` row tiles, a tile by `slices` warps, a
// slice of K each, whose sums meet in shared memory. Device code of linear and experts.
//
// What bounds one row is instructions, not memory: there are few warps, and all that they do
// between the predecessor's end and their own is waited for. So a warp has as many units as there
// is room for on their way at once, where it can all of them, with nothing left to count; it
// multiplies all eight columns of a product by the same row instead of choosing lanes; and the sums
// of all items meet once.
//
// A Work says what to multiply, item by item:
//   Spot spot(int item, bytes)       where this warp's part of an item lies, so many bytes into its
//                                    tile, but for what only begin() knows
//   const uint8_t* address_of(Spot, bool has_begun)  ... and all of it
//   int items_known()                how many may be fetched before; kAllKnown: all
//   kSpareBytes                      of the warp's ring that begin() may use
//   begin(uint8_t* spare, int pitch) waits until the inputs can be read; pitch: between warps
//   all_fetched()                    called by each warp after that, its last unit on its way
//   meet()                           a barrier of the block
//   const bf16* columns(int item)    the row's columns of this warp's slice, in shared memory
//   float factor(item, part, i)      of row i of a part's tile
//   finish(item, part, i, product)   takes a row's product; by whole warps, part -1: no row
#pragma once

#include <algorithm>

#include "backend/cuda/fragments.cuh"

namespace nibble::cuda {

// How a warp works: `stages` units under way, and then the next ones in their places ...
template <int stages>
struct RowPlan {
  static constexpr int kStages = stages, kItems = 0;

  template <typename Unit>
  static constexpr size_t ring_bytes(int warps) {
    return size_t(warps) * kStages * Unit::kBytes;
  }
};

// ... or all of them, of `items` items of `units` units at most, of which `decoded` are decoded
// before the wait. For units of NVFP4.
template <int items, int units, int decoded = 0>
struct AtOncePlan {
  static_assert(items * units <= 5);
  static constexpr int kItems = items, kUnits = units, kDecoded = decoded, kStages = items * units;

  template <typename Unit>
  static constexpr size_t ring_bytes(int warps) {
    return size_t(warps) * kStages * Unit::kBytes;
  }
  static bool takes(const PackedMatrices& w, int items_a_block) {
    return w.format == Format::kNvfp4 && w.units_per_slice == kUnits && items_a_block <= kItems;
  }
};

// The slices' sums of a row of a tile lie together, in whole pieces of four and one to spare, which
// keeps rows in different banks.
__host__ __device__ constexpr int sums_pitch(int slices) {
  return (slices + 3) / 4 * 4 + 4;
}
inline size_t row_sums_bytes(const PackedMatrices& w, int items, int together) {
  return size_t(items * together * kTileRows * sums_pitch(w.slices)) * sizeof(float);
}
// Items of a block that their sums have room for.
inline int most_row_items(const PackedMatrices& w, int together) {
  constexpr size_t kMostBytes = 48 << 10;
  return std::max(1, int(kMostBytes / row_sums_bytes(w, 1, together)));
}

// A warp's part of every item.
struct RowPart {
  int part = 0, slice = 0;  // which of its tiles, which slice of K
  int first_unit = 0, units = 0;

  __device__ __forceinline__ explicit RowPart(const PackedMatrices& w)
      : slice(int(threadIdx.x) / kWarp) {
    while (slice >= w.slices) slice -= w.slices, ++part;
    first_unit = slice * w.units_per_slice;
    units = min(w.units - first_unit, w.units_per_slice);
  }
};

// Brings `columns` columns into shared memory by a warp; the first `given` are there, zeros follow.
// Columns in eights. kAtOnce: loads of a lane under way.
template <int kAtOnce>
__device__ __forceinline__ void stage_columns(const uint4* from, int given, int columns,
                                              uint4* to) {
  const int lane = int(threadIdx.x) % kWarp;
  from += lane, to += lane, given -= 8 * lane, columns -= 8 * lane;
#pragma unroll 1
  do {
    uint4 v[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      v[k] = make_uint4(0, 0, 0, 0);
      if (k * 8 * kWarp < given) v[k] = from[k * kWarp];
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (k * 8 * kWarp < columns) to[k * kWarp] = v[k];
    }
    from += kAtOnce * kWarp, to += kAtOnce * kWarp;
    given -= kAtOnce * 8 * kWarp, columns -= kAtOnce * 8 * kWarp;
  } while (columns > 0);
}

// A lane's inputs of chunk `chunk`, from the columns of the unit.
__device__ __forceinline__ void read_inputs(const bf16* columns, int chunk, uint32_t (&b)[8]) {
  const auto* from = reinterpret_cast<const uint4*>(columns + chunk * kChunkInputs +
                                                    int(threadIdx.x) % 4 * kBlockInputs);
  const uint4 low = from[0], high = from[1];
  b[0] = low.x, b[1] = low.y, b[2] = low.z, b[3] = low.w;
  b[4] = high.x, b[5] = high.y, b[6] = high.z, b[7] = high.w;
}

// The A fragments of a unit, made before they are needed.
template <typename Unit>
struct Fragments {
  uint32_t a[Unit::kChunks][4][Unit::kProducts][4];

  __device__ __forceinline__ void decode(const typename Unit::Registers& registers) {
#pragma unroll
    for (int c = 0; c < Unit::kChunks; ++c) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int p = 0; p < Unit::kProducts; ++p) {
          Unit::fragment(registers, c, j, p, a[c][j][p]);
#pragma unroll
          for (int i = 0; i < 4; ++i) compute_now(a[c][j][p][i]);
        }
      }
    }
  }
  __device__ __forceinline__ void multiply(const bf16* columns, float (&sum)[4]) const {
#pragma unroll
    for (int c = 0; c < Unit::kChunks; ++c) {
      uint32_t b[8];
      read_inputs(columns, c, b);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int p = 0; p < Unit::kProducts; ++p) {
          multiply_bf16(sum, a[c][j][p], {b[2 * j], b[2 * j + 1]});
        }
      }
    }
  }
};

// The sums of a block's warps: [items, parts, rows, slices].
struct RowSums {
  float* sums;
  int slices, pitch, results, together, together_log2;

  __device__ __forceinline__ RowSums(const PackedMatrices& w, int items, int together, float* sums)
      : sums(sums),
        slices(w.slices),
        pitch(sums_pitch(w.slices)),
        results(items * together * kTileRows),
        together(together) {
    together_log2 = 31 - __clz(together);
  }

  __device__ __forceinline__ void clear_padding() const {
    for (int e = int(threadIdx.x); e < results; e += int(blockDim.x)) {
      for (int s = slices; s < pitch - 4; ++s) sums[e * pitch + s] = 0;
    }
  }
  // Where a lane puts the sums of its part of the first item, and of the next ones from there on.
  __device__ __forceinline__ float* of_lane(const RowPart& own) const {
    return sums + (own.part * kTileRows + int(threadIdx.x) % kWarp / 4) * pitch + own.slice;
  }
  __device__ __forceinline__ int item_pitch() const { return together * kTileRows * pitch; }
  __device__ __forceinline__ void store(const float (&sum)[4], float* to) const {
    if (threadIdx.x % 4 == 0) to[0] = sum[0], to[8 * pitch] = sum[2];
  }

  template <typename Work>
  __device__ __forceinline__ float factor(const Work& work, int e) const {
    return work.factor(e / kTileRows >> together_log2, e / kTileRows & (together - 1),
                       e % kTileRows);
  }
  // After a barrier. first_factor: of the thread's first result.
  template <typename Work>
  __device__ __forceinline__ void finish(Work& work, float first_factor) const {
    const int thread = int(threadIdx.x);
    float factor_here = first_factor;
#pragma unroll 1
    for (int e = thread; e < (results + kWarp - 1) / kWarp * kWarp; e += int(blockDim.x)) {
      const bool is_row = e < results;
      const auto* from = reinterpret_cast<const float4*>(sums + (is_row ? e : 0) * pitch);
      float product = 0;
#pragma unroll
      for (int s = 0; s < kMaxSlices / 4; ++s) {
        if (4 * s >= slices) break;
        const float4 v = from[s];
        product += v.x, product += v.y, product += v.z, product += v.w;
      }
      if (e != thread && is_row) factor_here = factor(work, e);
      work.finish(e / kTileRows >> together_log2, is_row ? e / kTileRows & (together - 1) : -1,
                  e % kTileRows, product * factor_here);
    }
  }
};

template <typename Unit>
__device__ __forceinline__ void multiply_unit(const typename Unit::Registers& registers,
                                              const bf16* columns, float (&sum)[4]) {
#pragma unroll
  for (int c = 0; c < Unit::kChunks; ++c) {
    uint32_t inputs[8];
    read_inputs(columns, c, inputs);
    multiply_chunk<Unit>(sum, registers, c, inputs);
  }
}

// A warp's units under way, each in its own place.
template <typename Unit, typename Plan, typename Work>
struct UnitsAtOnce {
  static constexpr int kItems = Plan::kItems, kUnits = Plan::kUnits, kStages = Plan::kStages;
  const uint8_t* ring;
  uint32_t codes, scales;  // where a lane's lie
  int units;               // of an item
  typename Work::Spot spots[kItems];

  __device__ __forceinline__ UnitsAtOnce(const Work& work, const RowPart& own, const uint8_t* ring)
      : ring(ring), units(kUnits == 1 ? 1 : own.units) {
    codes = whole_shared_address(ring + threadIdx.x % kWarp * 16);
    scales = whole_shared_address(ring + Unit::kScalesAt + threadIdx.x % kWarp * 4);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      spots[i] = work.spot(i, own.first_unit * Unit::kBytes + threadIdx.x % kWarp * 16);
    }
  }
  // Commits, also without an item, so that the number under way is known.
  __device__ __forceinline__ void fetch(const Work& work, int item, bool has_item,
                                        bool has_begun) const {
    const L2Policy policy = L2Policy::read_once();
    const uint8_t* const from = has_item ? work.address_of(spots[item], has_begun) : nullptr;
    const uint8_t* const from_scales = from + Unit::kScalesAt - int(threadIdx.x) % kWarp * 12;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int at = (item * kUnits + u) * Unit::kBytes;
      if (has_item && u < units) {
        copy_async_16(codes + at, from + u * Unit::kBytes, policy);
        copy_async_16(codes + at + 512, from + u * Unit::kBytes + 512, policy);
        copy_async_4(scales + at, from_scales + u * Unit::kBytes, policy);
      }
      commit_copies();
    }
  }
  // In loops that are unrolled.
  __device__ __forceinline__ typename Unit::Registers take(int place) const {
    wait_for_copies_but<kStages - 1>(kStages - 1 - place);
    return Unit::read(ring + place * Unit::kBytes, int(threadIdx.x) % kWarp);
  }
};

// In shared memory: ring, Plan::ring_bytes(); sums, row_sums_bytes().
template <typename Unit, typename Plan, typename Work>
requires(Plan::kItems > 0) __device__ __forceinline__
    void multiply_row(const PackedMatrices& w, const RowPart& own, Work& work, int items,
                      int together, uint8_t* ring, float* sums_memory) {
  constexpr int kItems = Plan::kItems, kUnits = Plan::kUnits, kStages = Plan::kStages;
  constexpr int kSpare = (Work::kSpareBytes + Unit::kBytes - 1) / Unit::kBytes;
  constexpr int kMostEarly = (kStages - kSpare) / kUnits;
  static_assert(Work::kAllKnown ? kSpare == 0 : kSpare <= kStages && Plan::kDecoded == 0);
  const RowSums sums(w, items, together, sums_memory);
  ring += int(threadIdx.x) / kWarp * kStages * Unit::kBytes;
  const UnitsAtOnce<Unit, Plan, Work> under_way(work, own, ring);
  const int early = Work::kAllKnown ? kItems : min(work.items_known(), kMostEarly);
#pragma unroll
  for (int i = 0; i < kMostEarly; ++i) {
    if (i < early) under_way.fetch(work, i, i < items, false);
  }
  sums.clear_padding();
  Fragments<Unit> decoded[std::max(Plan::kDecoded, 1)];
#pragma unroll
  for (int place = 0; place < Plan::kDecoded; ++place) {
    if (place < items * under_way.units) decoded[place].decode(under_way.take(place));
  }
  work.begin(ring + (kStages - kSpare) * Unit::kBytes, kStages * Unit::kBytes);
  if constexpr (!Work::kAllKnown) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (i >= early) under_way.fetch(work, i, i < items, true);
    }
  }
  work.all_fetched();
  float factor = 0;
  if (int(threadIdx.x) < sums.results) factor = sums.factor(work, int(threadIdx.x));

  float* to = sums.of_lane(own);
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    if (item >= items) break;
    float sum[4] = {};
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      if (unit >= under_way.units) break;
      const int place = item * kUnits + unit;
      const bf16* columns = work.columns(item) + unit * Unit::kInputs;
      if (place < Plan::kDecoded) {
        decoded[std::min(place, std::max(Plan::kDecoded - 1, 0))].multiply(columns, sum);
      } else {
        multiply_unit<Unit>(under_way.take(place), columns, sum);
      }
    }
    sums.store(sum, to);
    to += sums.item_pitch();
  }
  work.meet();
  sums.finish(work, factor);
}

template <typename Unit, typename Plan, typename Work>
requires(Plan::kItems == 0) __device__ __forceinline__
    void multiply_row(const PackedMatrices& w, const RowPart& own, Work& work, int items,
                      int together, uint8_t* ring, float* sums_memory) {
  constexpr int kStages = Plan::kStages;
  const int lane = int(threadIdx.x) % kWarp, steps = items * own.units;
  const RowSums sums(w, items, together, sums_memory);
  ring += int(threadIdx.x) / kWarp * kStages * Unit::kBytes;
  const uint8_t* data = nullptr;
  int left = steps, left_of_item = 0;  // to fetch
  int stage = 0, next_item = 0;
  bool has_begun = false;
  // Each commits, also without a unit, so that the number under way is known.
  const auto fetch = [&] {
    if (left > 0) {
      if (left_of_item == 0) {
        data = work.address_of(work.spot(next_item++, own.first_unit * Unit::kBytes), has_begun);
        left_of_item = own.units;
      }
      Unit::fetch(ring + stage, data, lane, L2Policy::read_once());
      data += Unit::kBytes, --left_of_item;
      if (--left == 0 && has_begun) work.all_fetched();
    }
    commit_copies();
    stage = stage + Unit::kBytes == kStages * Unit::kBytes ? 0 : stage + Unit::kBytes;
  };

  constexpr int kSpare = (Work::kSpareBytes + Unit::kBytes - 1) / Unit::kBytes;
  static_assert(kSpare <= kStages);
  const int early =
      Work::kAllKnown ? kStages : min(min(work.items_known(), items) * own.units, kStages - kSpare);
#pragma unroll 1
  for (int s = 0; s < early; ++s) fetch();
  sums.clear_padding();
  work.begin(ring + (kStages - kSpare) * Unit::kBytes, kStages * Unit::kBytes);
  has_begun = true;
  if (left == 0) work.all_fetched();
#pragma unroll 1
  for (int s = early; s < kStages; ++s) fetch();
  float factor = 0;
  if (int(threadIdx.x) < sums.results) factor = sums.factor(work, int(threadIdx.x));

  float sum[4] = {};
  int item = 0, unit = 0;
  float* to = sums.of_lane(own);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 1>();
    const auto registers = Unit::read(ring + stage, lane);
    fetch();
    multiply_unit<Unit>(registers, work.columns(item) + unit * Unit::kInputs, sum);
    if (++unit < own.units) continue;
    sums.store(sum, to);
    sum[0] = sum[1] = sum[2] = sum[3] = 0;
    to += sums.item_pitch();
    unit = 0, ++item;
  }
  work.meet();
  sums.finish(work, factor);
}

}  // namespace nibble::cuda
