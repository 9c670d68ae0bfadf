// The products of up to 16 rows with many tiles: a warp takes a tile at a time through K, so that
// warps hardly ever wait for each other. Device code of experts.
//
// Warps share a block's items in turn, or Balanced: they go through the slices of the items as if
// these were one line, and take equal lengths of it, so that all of them end at the same time. A
// tile that two warps share is begun by the first, which hands its sums so far to the second. A
// warp takes its items from the last to the first: what others go on with it does at the beginning,
// and what it goes on with at the end, when that has long been there.
//
// The matrix reaches a warp through its ring in shared memory, a unit of columns a stage, each lane
// copying the bytes that it reads back itself; the first stages are under way before the inputs are
// known. Inputs come by one of two ways:
//
//   StagedInputs  where a block's items share their rows: through shared memory, once for all
//   OwnInputs     where each warp has rows of its own: into registers, a unit ahead
//
// What bounds it is decoding, and with OwnInputs the reading of inputs from L2: of 8 rows they are
// more than the matrix' bytes.
#pragma once

#include <type_traits>

#include "backend/cuda/bulk.cuh"
#include "backend/cuda/stream.cuh"

namespace nibble::cuda {

inline constexpr int kMaxSweepWarps = 24;

// kGroups: of 8 rows, at most.
template <typename Unit, int kGroups>
struct SweepShape {
  static constexpr int kStages = Unit::kProducts == 1 ? 4 : 2;  // of a warp
  static constexpr int kRingBytes = kStages * Unit::kBytes;
  static constexpr int kTotalsBytes = kGroups * kWarp * int(sizeof(float4));
  static constexpr int kBarrierBytes = kMaxSweepWarps * int(sizeof(uint64_t));

  static constexpr size_t shared_bytes(int warps) {
    return kBarrierBytes + size_t(warps) * (kRingBytes + kTotalsBytes);
  }
};

// All items of a Work's segment have the same rows of inputs; with OwnInputs, a block's items are
// one segment.
template <typename Unit>
class StagedInputs {
 public:
  static constexpr bool kIsStaged = true;
  static constexpr int kGroups = 2;  // of 8 rows, at most

  static __host__ __device__ size_t shared_bytes(const PackedMatrices& w) {
    return size_t(kGroups * kRowGroup) * pitch_of(w);
  }

  __device__ StagedInputs(const PackedMatrices& w, const Activations& x, uint8_t* shared)
      : x_(x), staged_(shared), pitch_(pitch_of(w)) {}

  // All warps at once: brings the rows of an item's segment, zeros beyond them. A warp a row. When
  // it returns, all have ended the segment before.
  template <typename Work>
  __device__ void meet(const Work& work, typename Work::Cursor at) {
    constexpr int kAtOnce = 8;  // loads of a lane
    const int pieces = pitch_ / 16 - 1, columns = work.columns(at);
    const int rows = columns > kRowGroup ? kGroups * kRowGroup : kRowGroup;
    const int warps = int(blockDim.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    __syncthreads();
    for (int n = int(threadIdx.x) / kWarp; n < rows; n += warps) {
      const int row = n < columns ? work.input_row(at, n) : 0;
      const int end = n < columns ? x_.cols / 8 : 0;
      const auto* from = reinterpret_cast<const uint4*>(static_cast<const bf16*>(x_.data) +
                                                        int64_t(row) * x_.stride);
      auto* to = reinterpret_cast<uint4*>(staged_ + n * pitch_);
      for (int first = lane; first < pieces; first += kAtOnce * kWarp) {
        uint4 v[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          v[k] = make_uint4(0, 0, 0, 0);
          if (first + k * kWarp < end) v[k] = from[first + k * kWarp];
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          if (first + k * kWarp < pieces) to[first + k * kWarp] = v[k];
        }
      }
    }
    __syncthreads();
  }
  template <typename Work>
  __device__ __forceinline__ void begin(const Work&, typename Work::Cursor, int unit) {
    next_ = staged_ + int(threadIdx.x) % kWarp / 4 * pitch_ + int(threadIdx.x) % 4 * 32 +
            unit * (Unit::kInputs * 2);
  }
  __device__ __forceinline__ void chunk(int group, int c, uint32_t (&to)[8]) const {
    const uint8_t* from = next_ + group * kRowGroup * pitch_ + c * kChunkInputs * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 v = *reinterpret_cast<const uint4*>(from + i * 16);
      to[4 * i] = v.x, to[4 * i + 1] = v.y, to[4 * i + 2] = v.z, to[4 * i + 3] = v.w;
    }
  }
  __device__ __forceinline__ void advance() {
    next_ += Unit::kInputs * 2;
  }

 private:
  // 16 bytes more than the columns: the lanes of a load meet all banks.
  static __host__ __device__ int pitch_of(const PackedMatrices& w) {
    return w.units * Unit::kInputs * 2 + 16;
  }

  const Activations& x_;
  uint8_t* staged_;
  int pitch_;
  const uint8_t* next_ = nullptr;
};

// to = 16 bytes at `from` where `valid`, else left as it is.
__device__ __forceinline__ void load_where(bool valid, const void* from, uint32_t* to) {
  asm volatile(
      "{.reg .pred p;\n setp.ne.u32 p, %5, 0;\n @p ld.global.v4.u32 {%0, %1, %2, %3}, [%4];}"
      : "+r"(to[0]), "+r"(to[1]), "+r"(to[2]), "+r"(to[3])
      : "l"(from), "r"(uint32_t(valid)));
}

// Beyond the row's columns, where the matrix has zeros, earlier ones of the same row stay.
template <typename Unit>
class OwnInputs {
 public:
  static constexpr bool kIsStaged = false;
  static constexpr int kGroups = 1;

  static __host__ __device__ size_t shared_bytes(const PackedMatrices&) { return 0; }

  __device__ OwnInputs(const PackedMatrices&, const Activations& x, uint8_t*) : x_(x) {}

  template <typename Work>
  __device__ __forceinline__ void begin(const Work& work, typename Work::Cursor at, int unit) {
    const int g = int(threadIdx.x) % kWarp / 4;
    const int column = unit * Unit::kInputs + int(threadIdx.x) % 4 * kBlockInputs;
    const int row = g < work.columns(at) ? work.input_row(at, g) : -1;
    next_ = static_cast<const bf16*>(x_.data) + int64_t(max(row, 0)) * x_.stride + column;
    left_ = row < 0 ? 0 : x_.cols - column;
    load();
  }
  __device__ __forceinline__ void chunk(int, int c, uint32_t (&to)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = values_[c][i];
  }
  __device__ __forceinline__ void advance() {
    load();
  }

 private:
  __device__ __forceinline__ void load() {
#pragma unroll
    for (int c = 0; c < Unit::kChunks; ++c) {
      const bool valid = left_ > c * kChunkInputs;
      load_where(valid, next_ + c * kChunkInputs, values_[c]);
      load_where(valid, next_ + c * kChunkInputs + 8, values_[c] + 4);
    }
    next_ += Unit::kInputs;
    left_ -= Unit::kInputs;
  }

  const Activations& x_;
  uint32_t values_[Unit::kChunks][8] = {};
  const bf16* next_ = nullptr;
  int left_ = 0;  // columns from there on
};

// How warps share the items of a segment, `from` .. `to`. A share is at `item`, from slice
// first_slice() to end_slice().
//
// InTurn: whole items, one after another. Balanced: as the head of this file says; `begin` and
// `end` count slices from item 0's first on.
struct InTurn {
  static constexpr bool kHandsOver = false;
  int item, end, step, slices;

  __device__ InTurn(int from, int to, int slices)
      : item(from + int(threadIdx.x) / kWarp),
        end(to),
        step(int(blockDim.x) / kWarp),
        slices(slices) {}
  __device__ bool is_done() const { return item >= end; }
  __device__ void advance() { item += step; }
  __device__ int first_slice() const { return 0; }
  __device__ int end_slice() const { return slices; }
};
struct Balanced {
  static constexpr bool kHandsOver = true;
  int item, begin, end, slices;

  // None is empty but behind all others: each finds its predecessor's sums.
  __device__ Balanced(int from, int to, int slices) : slices(slices) {
    const int warp = int(threadIdx.x) / kWarp, warps = int(blockDim.x) / kWarp;
    const int length = (to - from) * slices, each = (length + warps - 1) / warps;
    begin = from * slices + min(length, warp * each);
    end = from * slices + min(length, (warp + 1) * each);
    item = begin < end ? (end - 1) / slices : begin / slices - 1;
  }
  __device__ bool is_done() const { return (item + 1) * slices <= begin; }
  __device__ void advance() { --item; }
  __device__ int first_slice() const { return max(begin - item * slices, 0); }
  __device__ int end_slice() const { return min(end - item * slices, slices); }
};

// A lane's sums, kWarp apart.
template <int kGroups>
__device__ __forceinline__ void read_sums(const float4* from, float (&sums)[kGroups][4]) {
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
    const float4 v = from[n * kWarp];
    sums[n][0] = v.x, sums[n][1] = v.y, sums[n][2] = v.z, sums[n][3] = v.w;
  }
}
template <int kGroups>
__device__ __forceinline__ void write_sums(const float (&sums)[kGroups][4], float4* to) {
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
    to[n * kWarp] = make_float4(sums[n][0], sums[n][1], sums[n][2], sums[n][3]);
  }
}

// Multiplies items 0 .. items. A Work here has, of stream.cuh's, matrix(), tile(), columns(),
// input_row(), begin() and finish(), and says
//   Cursor cursor_of(int item)
//   int segment_of(int item), int segment_begin(int segment): the first item (for StagedInputs)
template <typename Unit, template <typename> typename Inputs, typename Shares, typename Work>
__device__ __forceinline__ void sweep_products(const PackedMatrices& w, const Activations& x,
                                               const Work& work, int items, uint8_t* shared) {
  using Cursor = typename Work::Cursor;
  constexpr int kMostGroups = Inputs<Unit>::kGroups;
  using Shape = SweepShape<Unit, kMostGroups>;
  constexpr int kStages = Shape::kStages, kRingBytes = Shape::kRingBytes;
  const int warps = int(blockDim.x) / kWarp;
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int g = lane / 4, t = lane % 4, slices = w.slices;
  // Warp i hands over at barrier i, which knows 32 lanes.
  auto* barriers = reinterpret_cast<uint64_t*>(shared);
  auto* totals = reinterpret_cast<float4*>(shared + Shape::kBarrierBytes) + lane;
  uint8_t* ring = shared + Shape::kBarrierBytes + warps * Shape::kTotalsBytes + warp * kRingBytes;
  if (lane == 0) start_barrier(barriers + warp, kWarp);

  const auto share_of = [&](int segment) -> Shares {
    if constexpr (Inputs<Unit>::kIsStaged) {
      return Shares(max(0, work.segment_begin(segment)),
                    min(items, work.segment_begin(segment + 1)), slices);
    } else {
      return Shares(0, items, slices);
    }
  };
  int first_segment = 0, end_segment = items > 0 ? 1 : 0;
  if constexpr (Inputs<Unit>::kIsStaged) {
    if (items > 0) {
      first_segment = work.segment_of(0), end_segment = work.segment_of(items - 1) + 1;
    }
  }

  Shares next(0, 0, slices);  // to fetch
  int next_segment = first_segment, next_unit = 0, next_end = 0, stage = 0;
  const uint8_t* data = nullptr;
  bool fetches = false;
  const auto locate = [&] {
    next_unit = next.first_slice() * w.units_per_slice;
    next_end = min(next.end_slice() * w.units_per_slice, w.units);
    const Cursor at = work.cursor_of(next.item);
    data = w.data + size_t(unsigned(work.matrix(at) * w.tiles + work.tile(at))) * w.tile_bytes +
           next_unit * Unit::kBytes;
  };
  const auto open = [&] {  // the next segment of which this warp has a share
    fetches = false;
    for (; !fetches && next_segment < end_segment; ++next_segment) {
      next = share_of(next_segment);
      fetches = !next.is_done();
    }
    if (fetches) locate();
  };
  const auto go_on = [&] {  // with the next item
    next.advance();
    if (!next.is_done()) return locate();
    fetches = false;
    if constexpr (Inputs<Unit>::kIsStaged) open();
  };
  const auto fetch = [&] {
    if (fetches) {
      Unit::fetch(ring + stage, data, lane);
      data += Unit::kBytes;
      if (++next_unit == next_end) go_on();
    }
    commit_copies();
    stage = stage + Unit::kBytes == kRingBytes ? 0 : stage + Unit::kBytes;
  };
  open();
#pragma unroll 1
  for (int s = 0; s < kStages; ++s) fetch();
  work.begin();

  Inputs<Unit> inputs(w, x, shared + Shape::shared_bytes(warps));
  int taken = 0;  // hand-overs so far
#pragma unroll 1
  for (int segment = first_segment; segment < end_segment; ++segment) {
    if constexpr (Inputs<Unit>::kIsStaged) {
      inputs.meet(work, work.cursor_of(work.segment_begin(segment)));
    } else {
      __syncthreads();  // the barriers have been started
    }
#pragma unroll 1
    for (Shares share = share_of(segment); !share.is_done(); share.advance()) {
      const Cursor at = work.cursor_of(share.item);
      const int first_slice = share.first_slice(), end_slice = share.end_slice();
      const int tile = work.tile(at), columns = work.columns(at);
      const float* factors =
          w.factors + size_t(unsigned(work.matrix(at) * w.tiles + tile)) * kTileRows + g;
      const float low_factor = factors[0], high_factor = factors[8];
      inputs.begin(work, at, first_slice * w.units_per_slice);
      const auto multiply = [&]<int kGroups>(std::integral_constant<int, kGroups>) {
        float sum[kGroups][4] = {}, total[kGroups][4] = {};
        if (Shares::kHandsOver && first_slice > 0) {
          wait_for_phase(barriers + warp - 1, taken++ & 1);
          read_sums(totals + (warp - 1) * kMostGroups * kWarp, total);
        }
        const int end_unit = min(end_slice * w.units_per_slice, w.units);
        int left = w.units_per_slice;
#pragma unroll 1
        for (int unit = first_slice * w.units_per_slice; unit < end_unit; ++unit) {
          wait_for_copies<kStages - 1>();
          const auto registers = Unit::read(ring + stage, lane);
          fetch();
#pragma unroll
          for (int c = 0; c < Unit::kChunks; ++c) {
            uint32_t values[kGroups][8];
#pragma unroll
            for (int n = 0; n < kGroups; ++n) inputs.chunk(n, c, values[n]);
            multiply_chunk<Unit>(sum, registers, c, values);
          }
          inputs.advance();
          if (--left == 0 || unit + 1 == end_unit) {
            left = w.units_per_slice;
#pragma unroll
            for (int i = 0; i < kGroups * 4; ++i) {
              total[i / 4][i % 4] += sum[i / 4][i % 4], sum[i / 4][i % 4] = 0;
            }
          }
        }
        if (Shares::kHandsOver && end_slice < slices) {
          write_sums(total, totals + warp * kMostGroups * kWarp);
          arrive_at(barriers + warp);
          return;
        }
#pragma unroll
        for (int i = 0; i < kGroups * 2; ++i) {
          const int column = i / 2 * kRowGroup + t * 2 + i % 2;
          if (column >= columns) continue;
          work.finish(at, tile, g, column, total[i / 2][i % 2] * low_factor,
                      total[i / 2][2 + i % 2] * high_factor);
        }
      };
      if (kMostGroups > 1 && columns > kRowGroup) {
        multiply(std::integral_constant<int, kMostGroups>());
      } else {
        multiply(std::integral_constant<int, 1>());
      }
    }
  }
}

}  // namespace nibble::cuda
