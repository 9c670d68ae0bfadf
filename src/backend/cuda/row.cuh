// The products of one row: a block takes items of `together` row tiles, a tile by `slices` warps, a
// slice of K each, whose sums meet in shared memory. Device code of linear and experts.
//
// What bounds one row is instructions, not memory: there are few warps, and all that they do
// between the predecessor's end and their own is waited for. So a warp has as many units as there
// is room for on their way at once, and decodes the first before it waits; it multiplies all eight
// columns of a product by the same row instead of choosing lanes; and the sums of all items meet
// once.
//
// A Work says what to multiply, item by item:
//   const uint8_t* next_tile()       the packed tile of this warp's part of the item to fetch next
//   int items_known()                how many may be fetched before
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

// How a warp works: units that it decodes before the wait, and has under way at once.
template <int decoded, int stages>
struct RowPlan {
  static constexpr int kDecoded = decoded, kStages = stages;

  template <typename Unit>
  static constexpr size_t ring_bytes(int warps) {
    return size_t(warps) * kStages * Unit::kBytes;
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

// Brings `pieces` pieces of 8 columns into shared memory by a warp; the first `given` are there,
// zeros follow. kAtOnce: loads of a lane under way.
template <int kAtOnce>
__device__ __forceinline__ void stage_columns(const uint4* from, int given, int pieces, uint4* to) {
#pragma unroll 1
  for (int i = int(threadIdx.x) % kWarp; i < pieces; i += kAtOnce * kWarp) {
    uint4 v[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      v[k] = i + k * kWarp < given ? from[i + k * kWarp] : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (i + k * kWarp < pieces) to[i + k * kWarp] = v[k];
    }
  }
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

// In shared memory: ring, Plan::ring_bytes(); sums, row_sums_bytes().
template <typename Unit, typename Plan, typename Work>
__device__ __forceinline__ void multiply_row(const PackedMatrices& w, const RowPart& own,
                                             Work& work, int items, int together, uint8_t* ring,
                                             float* sums) {
  constexpr int kDecoded = Plan::kDecoded, kStages = Plan::kStages;
  const int thread = int(threadIdx.x), lane = thread % kWarp;
  const int steps = items * own.units, pitch = sums_pitch(w.slices);
  const int results = items * together * kTileRows, together_log2 = 31 - __clz(together);
  ring += thread / kWarp * kStages * Unit::kBytes;
  const uint8_t* data = nullptr;
  int left = steps, left_of_item = 0;  // to fetch
  int stage = 0;
  bool has_begun = false;
  // Each commits, also without a unit, so that the number under way is known.
  const auto fetch = [&] {
    if (left > 0) {
      if (left_of_item == 0) {
        data = work.next_tile() + own.first_unit * Unit::kBytes;
        left_of_item = own.units;
      }
      Unit::fetch(ring + stage, data, lane, L2Policy::read_once());
      data += Unit::kBytes, --left_of_item;
      if (--left == 0 && has_begun) work.all_fetched();
    }
    commit_copies();
    stage = stage + Unit::kBytes == kStages * Unit::kBytes ? 0 : stage + Unit::kBytes;
  };
  const auto take = [&] {
    wait_for_copies<kStages - 1>();
    const auto registers = Unit::read(ring + stage, lane);
    fetch();
    return registers;
  };

  constexpr int kSpare = (Work::kSpareBytes + Unit::kBytes - 1) / Unit::kBytes;
  static_assert(kSpare <= kStages && (kSpare == 0 || kDecoded == 0));
  const int early = min(min(work.items_known(), items) * own.units, kStages - kSpare);
#pragma unroll 1
  for (int s = 0; s < early; ++s) fetch();
  for (int e = thread; e < results; e += int(blockDim.x)) {
    for (int s = w.slices; s < pitch - 4; ++s) sums[e * pitch + s] = 0;
  }
  Fragments<Unit> decoded[std::max(kDecoded, 1)];
  if (kDecoded > 0) {
#pragma unroll 1
    for (int s = early; s < kStages; ++s) fetch();
  }
#pragma unroll
  for (int j = 0; j < kDecoded; ++j) {
    if (j < steps) decoded[j].decode(take());
  }
  work.begin(ring + (kStages - kSpare) * Unit::kBytes, kStages * Unit::kBytes);
  has_begun = true;
  if (left == 0) work.all_fetched();
  if (kDecoded == 0) {
#pragma unroll 1
    for (int s = early; s < kStages; ++s) fetch();
  }
  const auto factor_of = [&](int e) {
    return work.factor(e / kTileRows >> together_log2, e / kTileRows & (together - 1),
                       e % kTileRows);
  };
  float factor = 0;
  if (thread < results) factor = factor_of(thread);

  float sum[4] = {};
  int item = 0, unit = 0;
  float* to = sums + (own.part * kTileRows + lane / 4) * pitch + own.slice;
  const auto leave = [&] {
    if (++unit < own.units) return;
    if (lane % 4 == 0) to[0] = sum[0], to[8 * pitch] = sum[2];
    sum[0] = sum[1] = sum[2] = sum[3] = 0;
    to += together * kTileRows * pitch;
    unit = 0, ++item;
  };
#pragma unroll
  for (int j = 0; j < kDecoded; ++j) {
    if (j >= steps) break;
    decoded[j].multiply(work.columns(item) + unit * Unit::kInputs, sum);
    leave();
  }
#pragma unroll 1
  for (int step = kDecoded; step < steps; ++step) {
    const auto registers = take();
    const bf16* columns = work.columns(item) + unit * Unit::kInputs;
#pragma unroll
    for (int c = 0; c < Unit::kChunks; ++c) {
      uint32_t inputs[8];
      read_inputs(columns, c, inputs);
      multiply_chunk<Unit>(sum, registers, c, inputs);
    }
    leave();
  }
  work.meet();
#pragma unroll 1
  for (int e = thread; e < (results + kWarp - 1) / kWarp * kWarp; e += int(blockDim.x)) {
    const bool is_row = e < results;
    const auto* from = reinterpret_cast<const float4*>(sums + (is_row ? e : 0) * pitch);
    float product = 0;
#pragma unroll
    for (int s = 0; s < kMaxSlices / 4; ++s) {
      if (4 * s >= w.slices) break;
      const float4 v = from[s];
      product += v.x, product += v.y, product += v.z, product += v.w;
    }
    if (e != thread && is_row) factor = factor_of(e);
    work.finish(e / kTileRows >> together_log2, is_row ? e / kTileRows & (together - 1) : -1,
                e % kTileRows, product * factor);
  }
}

}  // namespace nibble::cuda
