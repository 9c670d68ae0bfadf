// The products of up to 8 rows with many tiles: a warp takes some tiles at once through K, so that
// warps hardly ever wait for each other. Device code of experts.
//
// Warps share a block's items in turn, or Balanced: they go through the slices of the items as if
// these were one line, and take equal lengths of it, so that all of them end at the same time. An
// item that two warps share is begun by the first, which hands its sums so far to the second. A
// warp takes its items from the last to the first: what others go on with it does at the beginning,
// and what it goes on with at the end, when that has long been there.
//
// The matrix reaches a warp through its ring in shared memory, a unit of columns of each of its
// tiles a stage, each lane copying the bytes that it reads back itself; the first stages are under
// way before the inputs are known. Inputs come by one of two ways:
//
//   StagedInputs  where a block's items share their rows: through shared memory, once for all,
//                 brought by a warp of their own ahead of the others
//   OwnInputs     where each warp has rows of its own: into registers, a unit ahead
//
// With OwnInputs, reading them from L2 bounds it: of 8 rows they are more than a tile's bytes.
#pragma once

#include <type_traits>

#include "backend/cuda/bulk.cuh"
#include "backend/cuda/stream.cuh"

namespace nibble::cuda {

inline constexpr int kMaxSweepWarps = 24;

// kTiles: at once.
template <typename Unit, int kTiles>
struct SweepShape {
  static constexpr int kStages = Unit::kProducts == 1 && kTiles == 1 ? 4 : 2;  // more are no faster
  static constexpr int kStageBytes = kTiles * Unit::kBytes;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kTotalsBytes = kTiles * kWarp * int(sizeof(float4));
  static constexpr int kBarrierBytes = 2 * kMaxSweepWarps * int(sizeof(uint64_t));

  static constexpr size_t shared_bytes(int warps) {
    return kBarrierBytes + size_t(warps) * (kRingBytes + kTotalsBytes);
  }
};

// A block's items lie in segments, each of rows of its own. A warp behind those that multiply
// brings a segment's rows into the next buffer, as soon as all have left the one that was there.
template <typename Unit>
class StagedInputs {
 public:
  static constexpr bool kIsStaged = true;
  static constexpr int kBuffers = 2;  // segments that warps work on at once

  // For matrices of up to `units` units.
  static __host__ __device__ size_t shared_bytes(int units) {
    return kBarrierBytes + size_t(kBuffers) * kRowGroup * pitch_of(units);
  }

  // By all threads, which meet before the first use. `warps` multiply.
  __device__ StagedInputs(int units, int warps, uint8_t* shared)
      : arrived_(reinterpret_cast<uint64_t*>(shared)),
        left_(arrived_ + kBuffers),
        buffers_(shared + kBarrierBytes),
        pitch_(pitch_of(units)) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kBuffers; ++i) {
        start_barrier(arrived_ + i, kWarp);
        start_barrier(left_ + i, warps * kWarp);
      }
    }
  }

  // By all lanes of the warp that brings them: the rows of an item's segment. Zeros beyond a row's
  // columns, where the matrix has zeros, too; rows beyond the segment's stay as they are.
  template <typename Work>
  __device__ void bring(const Activations& x, int units, const Work& work,
                        typename Work::Cursor at) {
    const int lane = int(threadIdx.x) % kWarp, pieces = units * Unit::kInputs / 8;
    wait_until_left(next_, phase_ ^ 1);
    uint8_t* buffer = buffers_ + next_ * kRowGroup * pitch_;
    for (int n = 0; n < work.columns(at); ++n) {
      const auto* from =
          static_cast<const bf16*>(x.data) + int64_t(work.input_row(at, n)) * x.stride;
#pragma unroll 4
      for (int piece = lane; piece < pieces; piece += kWarp) {
        const bool valid = piece * 8 < x.cols;
        copy_async_16(buffer + n * pitch_ + piece * 16, from + (valid ? piece * 8 : 0), valid);
      }
    }
    arrive_with_copies(arrived_ + next_);
    pass(1);
  }
  __device__ __forceinline__ int next_buffer() const {
    return next_;
  }
  // Of a buffer's last use, if there was one.
  __device__ __forceinline__ void wait_until_left(int buffer) const {
    wait_until_left(buffer, buffer < next_ ? phase_ : phase_ ^ 1);
  }

  // By each warp that multiplies. Number `i` of the next kBuffers segments, from `unit` on.
  __device__ __forceinline__ void begin(int i, int unit) {
    const int buffer = wait_for(i);
    from_ = buffers_ + (buffer * kRowGroup + int(threadIdx.x) % kWarp / 4) * pitch_ +
            int(threadIdx.x) % 4 * 32 + unit * (Unit::kInputs * 2);
  }
  __device__ __forceinline__ void chunk(int c, uint32_t (&to)[8]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 v = *reinterpret_cast<const uint4*>(from_ + c * kChunkInputs * 2 + i * 16);
      to[4 * i] = v.x, to[4 * i + 1] = v.y, to[4 * i + 2] = v.z, to[4 * i + 3] = v.w;
    }
  }
  __device__ __forceinline__ void advance() {
    from_ += Unit::kInputs * 2;
  }
  // The next `count` segments have ended for this warp.
  __device__ __forceinline__ void leave(int count) {
    for (int i = 0; i < count; ++i) arrive_at(left_ + wait_for(i));
    pass(count);
  }

 private:
  static constexpr int kBarrierBytes = 128;
  static_assert(kBuffers == 2);

  // 16 bytes more than the columns: the lanes of a load meet all banks.
  static __host__ __device__ int pitch_of(int units) {
    return units * Unit::kInputs * 2 + 16;
  }
  __device__ __forceinline__ void wait_until_left(int buffer, int phase) const {
    wait_for_phase(left_ + buffer, phase);
  }
  __device__ __forceinline__ int wait_for(int i) const {
    const bool wraps = next_ + i >= kBuffers;
    const int buffer = wraps ? next_ + i - kBuffers : next_ + i;
    wait_for_phase(arrived_ + buffer, wraps ? phase_ ^ 1 : phase_);
    return buffer;
  }
  __device__ __forceinline__ void pass(int count) {
    next_ += count;
    if (next_ >= kBuffers) next_ -= kBuffers, phase_ ^= 1;
  }

  uint64_t *arrived_, *left_;
  uint8_t* buffers_;
  int pitch_;
  int next_ = 0, phase_ = 0;  // buffer and phase of the next use
  const uint8_t* from_ = nullptr;
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
  static constexpr int kBuffers = 1;

  explicit __device__ OwnInputs(const Activations& x) : x_(x) {}

  template <typename Work>
  __device__ __forceinline__ void begin(const Work& work, typename Work::Cursor at, int unit) {
    const int g = int(threadIdx.x) % kWarp / 4;
    const int column = unit * Unit::kInputs + int(threadIdx.x) % 4 * kBlockInputs;
    const int row = g < work.columns(at) ? work.input_row(at, g) : -1;
    next_ = static_cast<const bf16*>(x_.data) + int64_t(max(row, 0)) * x_.stride + column;
    left_ = row < 0 ? 0 : x_.cols - column;
    load();
  }
  __device__ __forceinline__ void chunk(int c, uint32_t (&to)[8]) const {
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

// How the `warps` that multiply share the items of a segment, `from` .. `to`. A share is at `item`,
// from slice first_slice() to end_slice().
//
// InTurn: whole items, one after another. Balanced: as the head of this file says; `begin` and
// `end` count slices from item 0's first on.
struct InTurn {
  static constexpr bool kHandsOver = false;
  int item, end, step, slices;

  __device__ InTurn(int from, int to, int slices, int warps)
      : item(from + int(threadIdx.x) / kWarp), end(to), step(warps), slices(slices) {}
  __device__ bool is_done() const { return item >= end; }
  __device__ void advance() { item += step; }
  __device__ int first_slice() const { return 0; }
  __device__ int end_slice() const { return slices; }
};
struct Balanced {
  static constexpr bool kHandsOver = true;
  int item, begin, end, slices;

  // None is empty but behind all others: each finds its predecessor's sums.
  __device__ Balanced(int from, int to, int slices, int warps) : slices(slices) {
    const int warp = int(threadIdx.x) / kWarp;
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
template <int kCount>
__device__ __forceinline__ void read_sums(const float4* from, float (&sums)[kCount][4]) {
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
    const float4 v = from[n * kWarp];
    sums[n][0] = v.x, sums[n][1] = v.y, sums[n][2] = v.z, sums[n][3] = v.w;
  }
}
template <int kCount>
__device__ __forceinline__ void write_sums(const float (&sums)[kCount][4], float4* to) {
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
    to[n * kWarp] = make_float4(sums[n][0], sums[n][1], sums[n][2], sums[n][3]);
  }
}

// A warp's way through the matrices ahead of its products: the ring.
template <typename Unit, int kTiles, typename Shape, typename Work>
struct SweepRing {
  const PackedMatrices& w;
  const Work& work;
  uint8_t* memory;
  int stage = 0, unit = 0, end_unit = 0;
  const uint8_t* data = nullptr;
  bool fetches = false, is_whole = true;  // whole: there are all of the item's tiles

  template <typename Shares>
  __device__ __forceinline__ void locate(const Shares& share) {
    unit = share.first_slice() * w.units_per_slice;
    end_unit = min(share.end_slice() * w.units_per_slice, w.units);
    const auto at = work.cursor_of(share.item);
    const int tile = work.tile(at);
    is_whole = tile + kTiles <= w.tiles;
    data = w.data + size_t(unsigned(work.matrix(at) * w.tiles + tile)) * w.tile_bytes +
           unit * Unit::kBytes;
  }
  // Fetches a stage of units; true when the item has no more of them.
  __device__ __forceinline__ bool fetch(int lane) {
    bool is_last = false;
    if (fetches) {
      Unit::fetch(memory + stage, data, lane);
      if constexpr (kTiles > 1) {
        static_assert(kTiles == 2);
        if (is_whole) Unit::fetch(memory + stage + Unit::kBytes, data + w.tile_bytes, lane);
      }
      data += Unit::kBytes;
      is_last = ++unit == end_unit;
    }
    commit_copies();
    stage = stage + Shape::kStageBytes == Shape::kRingBytes ? 0 : stage + Shape::kStageBytes;
    return is_last;
  }
};

// The warps that multiply, `warps` of a block: their hand-overs and rings, for one run after
// another.
template <typename Unit, typename Inputs, typename Shares, int kTiles>
class Sweep {
 public:
  using Shape = SweepShape<Unit, kTiles>;

  // By all threads, which meet before the first run.
  __device__ Sweep(int warps, uint8_t* shared)
      : warps_(warps),
        handed_(reinterpret_cast<uint64_t*>(shared)),
        totals_(reinterpret_cast<float4*>(shared + Shape::kBarrierBytes) +
                int(threadIdx.x) % kWarp),
        ring_(shared + Shape::kBarrierBytes + warps * Shape::kTotalsBytes +
              int(threadIdx.x) / kWarp * Shape::kRingBytes) {
    const int warp = int(threadIdx.x) / kWarp;
    if (int(threadIdx.x) % kWarp == 0 && warp < warps) {
      start_barrier(handed_ + warp, kWarp);
      start_barrier(taken_of(warp), kWarp);
    }
  }

  // Multiplies items 0 .. items, each of kTiles tiles, by each of the warps. A Work here has, of
  // stream.cuh's, matrix(), tile(), columns(), input_row(), begin() and finish(), and says
  //   Cursor cursor_of(int item)
  //   int segment_of(int item), int segment_begin(int segment): the first item (for StagedInputs)
  template <typename Work>
  __device__ __forceinline__ void run(const PackedMatrices& w, const Work& work, int items,
                                      Inputs& inputs);

 private:
  __device__ __forceinline__ uint64_t* taken_of(int warp) const {
    return handed_ + kMaxSweepWarps + warp;
  }

  int warps_;
  uint64_t* handed_;  // warp i hands over at barrier i, and may again after taken_of(i)'s
  float4* totals_;    // a lane's
  uint8_t* ring_;
  int num_taken_ = 0, num_handed_ = 0;
};

template <typename Unit, typename Inputs, typename Shares, int kTiles>
template <typename Work>
__device__ __forceinline__ void Sweep<Unit, Inputs, Shares, kTiles>::run(const PackedMatrices& w,
                                                                         const Work& work,
                                                                         int items,
                                                                         Inputs& inputs) {
  using Cursor = typename Work::Cursor;
  constexpr int kAtOnce = Inputs::kBuffers;
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int g = lane / 4, t = lane % 4, slices = w.slices;
  int first_segment = 0, end_segment = items > 0 ? 1 : 0;
  if constexpr (Inputs::kIsStaged) {
    if (items > 0) {
      first_segment = work.segment_of(0), end_segment = work.segment_of(items - 1) + 1;
    }
  }
  const auto share_of = [&](int segment) -> Shares {  // of it and those after it
    if constexpr (Inputs::kIsStaged) {
      return Shares(max(0, work.segment_begin(segment)),
                    min(items, work.segment_begin(segment + kAtOnce)), slices, warps_);
    } else {
      return Shares(0, items, slices, warps_);
    }
  };

  SweepRing<Unit, kTiles, Shape, Work> ring{w, work, ring_};
  Shares next(0, 0, slices, warps_);  // to fetch
  int next_segment = first_segment;
  const auto open = [&] {  // the next segments of which this warp has a share
    ring.fetches = false;
    for (; !ring.fetches && next_segment < end_segment; next_segment += kAtOnce) {
      next = share_of(next_segment);
      ring.fetches = !next.is_done();
    }
    if (ring.fetches) ring.locate(next);
  };
  const auto fetch = [&] {
    if (!ring.fetch(lane)) return;
    next.advance();
    if (!next.is_done()) return ring.locate(next);
    ring.fetches = false;
    if constexpr (Inputs::kIsStaged) open();
  };
  open();
#pragma unroll 1
  for (int s = 0; s < Shape::kStages; ++s) fetch();
  work.begin();

#pragma unroll 1
  for (int segment = first_segment; segment < end_segment; segment += kAtOnce) {
#pragma unroll 1
    for (Shares share = share_of(segment); !share.is_done(); share.advance()) {
      const Cursor at = work.cursor_of(share.item);
      const int first_slice = share.first_slice(), end_slice = share.end_slice();
      const int tile = work.tile(at), columns = work.columns(at);
      const int own_tiles = min(kTiles, w.tiles - tile);
      float factors[kTiles][2];
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const float* from =
            w.factors + g +
            size_t(unsigned(work.matrix(at) * w.tiles + tile + min(i, own_tiles - 1))) * kTileRows;
        factors[i][0] = from[0], factors[i][1] = from[8];
      }
      if constexpr (Inputs::kIsStaged) {
        inputs.begin(work.segment_of(share.item) - segment, first_slice * w.units_per_slice);
      } else {
        inputs.begin(work, at, first_slice * w.units_per_slice);
      }
      float sum[kTiles][4] = {}, total[kTiles][4] = {};
      if (Shares::kHandsOver && first_slice > 0) {
        wait_for_phase(handed_ + warp - 1, num_taken_++ & 1);
        read_sums(totals_ + (warp - 1) * kTiles * kWarp, total);
        arrive_at(taken_of(warp - 1));
      }
      const int end_unit = min(end_slice * w.units_per_slice, w.units);
      int left = w.units_per_slice;
#pragma unroll 1
      for (int unit = first_slice * w.units_per_slice; unit < end_unit; ++unit) {
        wait_for_copies<Shape::kStages - 1>();
        typename Unit::Registers registers[kTiles];
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          registers[i] = Unit::read(ring.memory + ring.stage + i * Unit::kBytes, lane);
        }
        fetch();
#pragma unroll
        for (int c = 0; c < Unit::kChunks; ++c) {
          uint32_t values[8];
          inputs.chunk(c, values);
#pragma unroll
          for (int i = 0; i < kTiles; ++i) multiply_chunk<Unit>(sum[i], registers[i], c, values);
        }
        inputs.advance();
        if (--left == 0 || unit + 1 == end_unit) {
          left = w.units_per_slice;
#pragma unroll
          for (int i = 0; i < kTiles * 4; ++i) {
            total[i / 4][i % 4] += sum[i / 4][i % 4], sum[i / 4][i % 4] = 0;
          }
        }
      }
      if (Shares::kHandsOver && end_slice < slices) {
        wait_for_phase(taken_of(warp), (num_handed_++ & 1) ^ 1);
        write_sums(total, totals_ + warp * kTiles * kWarp);
        arrive_at(handed_ + warp);
        continue;
      }
#pragma unroll
      for (int i = 0; i < kTiles * 2; ++i) {
        const int part = i / 2, column = t * 2 + i % 2;
        if (column >= columns || part >= own_tiles) continue;
        work.finish(at, tile + part, g, column, total[part][i % 2] * factors[part][0],
                    total[part][2 + i % 2] * factors[part][1]);
      }
    }
    if constexpr (Inputs::kIsStaged) inputs.leave(min(kAtOnce, end_segment - segment));
  }
}

}  // namespace nibble::cuda
