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
//   OwnInputs     where each warp has rows of its own: from L2 or shared memory into registers, a
//                 unit ahead
#pragma once

#include <type_traits>

#include "backend/cuda/bulk.cuh"
#include "backend/cuda/divisor.cuh"
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
// By bulk copies where there are: copies by its lanes would stand in one line with those of the
// rings, which are never short of any.
template <typename Unit>
class StagedInputs {
 public:
  static constexpr bool kIsStaged = true;
  static constexpr int kSegments = 2;     // that warps work on at once
  static constexpr int kMostBuffers = 3;  // of a segment's rows each: one ahead

  // For matrices of up to `units` units; buffers: kSegments to kMostBuffers.
  static __host__ __device__ size_t shared_bytes(int units, int buffers) {
    return kBarrierBytes + size_t(buffers) * kRowGroup * pitch_of(units);
  }

  // By all threads, which meet before the first use. `warps` multiply.
  __device__ StagedInputs(int units, int buffers, int warps, uint8_t* shared)
      : num_buffers_(buffers),
        arrived_(reinterpret_cast<uint64_t*>(shared)),
        left_(arrived_ + kMostBuffers),
        buffers_(shared + kBarrierBytes),
        pitch_(pitch_of(units)) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kMostBuffers; ++i) {
        start_barrier(arrived_ + i, kWarp);
        start_barrier(left_ + i, warps * kWarp);
      }
#if __CUDA_ARCH__ >= 900
      publish_barriers();
#endif
    }
  }

  // By all lanes of the warp that brings them: the rows of an item's segment. Zeros beyond a row's
  // columns, where the matrix has zeros, too; rows beyond the segment's stay as they are.
  template <typename Work>
  __device__ void bring(const Activations& x, int units, const Work& work,
                        typename Work::Cursor at) {
    const int lane = int(threadIdx.x) % kWarp, columns = work.columns(at);
    const int pieces = units * Unit::kInputs / 8, valid_pieces = (x.cols + 7) / 8;
    wait_until_left(next_, phase_ ^ 1);
    uint8_t* buffer = buffers_ + next_ * kRowGroup * pitch_;
    const auto row_at = [&](int n) {
      return static_cast<const bf16*>(x.data) + int64_t(work.input_row(at, n)) * x.stride;
    };
#if __CUDA_ARCH__ >= 900
    const int rest = pieces - valid_pieces;
    for (int i = lane; i < columns * rest; i += kWarp) {
      const int n = i / rest, piece = valid_pieces + i - n * rest;
      *reinterpret_cast<uint4*>(buffer + n * pitch_ + piece * 16) = {};
    }
    if (lane < columns) {
      see_in_bulk_copies();
      copy_bulk(buffer + lane * pitch_, row_at(lane), valid_pieces * 16, arrived_ + next_);
    }
    if (lane == 0) {
      arrive_expecting(arrived_ + next_, columns * valid_pieces * 16);
    } else {
      arrive_at(arrived_ + next_);
    }
#else
    for (int n = 0; n < columns; ++n) {
      const bf16* from = row_at(n);
#pragma unroll 4
      for (int piece = lane; piece < pieces; piece += kWarp) {
        const bool valid = piece < valid_pieces;
        copy_async_16(buffer + n * pitch_ + piece * 16, from + (valid ? piece * 8 : 0), valid);
      }
    }
    arrive_with_copies(arrived_ + next_);
#endif
    pass(1);
  }
  __device__ __forceinline__ int num_buffers() const {
    return num_buffers_;
  }
  // Of a buffer's last use, if there was one.
  __device__ __forceinline__ void wait_until_left(int buffer) const {
    wait_until_left(buffer, buffer < next_ ? phase_ : phase_ ^ 1);
  }

  // By each warp that multiplies. Number `i` of the next kSegments segments, from `unit` on.
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
#if __CUDA_ARCH__ >= 900
    let_bulk_copies_overwrite();
#endif
    for (int i = 0; i < count; ++i) arrive_at(left_ + wait_for(i));
    pass(count);
  }

 private:
  static constexpr int kBarrierBytes = 128;

  // 16 bytes more than the columns: the lanes of a load meet all banks.
  static __host__ __device__ int pitch_of(int units) {
    return units * Unit::kInputs * 2 + 16;
  }
  __device__ __forceinline__ void wait_until_left(int buffer, int phase) const {
    wait_for_phase(left_ + buffer, phase);
  }
  __device__ __forceinline__ int wait_for(int i) const {
    const bool wraps = next_ + i >= num_buffers_;
    const int buffer = wraps ? next_ + i - num_buffers_ : next_ + i;
    wait_for_phase(arrived_ + buffer, wraps ? phase_ ^ 1 : phase_);
    return buffer;
  }
  __device__ __forceinline__ void pass(int count) {
    next_ += count;
    if (next_ >= num_buffers_) next_ -= num_buffers_, phase_ ^= 1;
  }

  int num_buffers_;
  uint64_t *arrived_, *left_;
  uint8_t* buffers_;
  int pitch_;
  int next_ = 0, phase_ = 0;  // buffer and phase of the next use
  const uint8_t* from_ = nullptr;
};

// to = 16 bytes at `from`, in either memory, where `valid`, else left as it is.
__device__ __forceinline__ void load_where(bool valid, const void* from, uint32_t* to) {
  asm volatile("{.reg .pred p;\n setp.ne.u32 p, %5, 0;\n @p ld.v4.u32 {%0, %1, %2, %3}, [%4];}"
               : "+r"(to[0]), "+r"(to[1]), "+r"(to[2]), "+r"(to[3])
               : "l"(from), "r"(uint32_t(valid)));
}

// Beyond the row's columns, where the matrix has zeros, earlier ones of the same row stay.
template <typename Unit>
class OwnInputs {
 public:
  static constexpr bool kIsStaged = false;

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

// Items `from` .. `to` of a part of a Work, which warps share at once: of so many segments, none
// behind the last of all.
struct Group {
  int part, from, to, segments;
};

// How the `warps` that multiply share the items of a group. A share is at `item`, from slice
// first_slice() to end_slice().
//
// InTurn: whole items, one after another. Balanced: as the head of this file says; `begin` and
// `end` count slices from item 0's first on.
struct InTurn {
  static constexpr bool kHandsOver = false;
  int item = 0, end = 0, step = 0, slices = 0;

  __device__ InTurn() {}
  template <typename Count>
  __device__ InTurn(const Group& group, const Count& slices, const Count& warps)
      : item(group.from + int(threadIdx.x) / kWarp), end(group.to), step(warps), slices(slices) {}
  __device__ bool is_done() const { return item >= end; }
  __device__ void advance() { item += step; }
  __device__ int first_slice() const { return 0; }
  __device__ int end_slice() const { return slices; }
};
struct Balanced {
  static constexpr bool kHandsOver = true;
  int item = 0, begin = 0, end = 0, slices = 0;

  __device__ Balanced() {}
  // None is empty but behind all others: each finds its predecessor's sums.
  template <typename Count>
  __device__ Balanced(const Group& group, const Count& a_item, const Count& warps)
      : slices(a_item) {
    const int warp = int(threadIdx.x) / kWarp, from = group.from * slices;
    const int length = group.to * slices - from;
    const int each = quotient(length + warps - 1, warps);
    begin = from + min(length, warp * each);
    end = from + min(length, (warp + 1) * each);
    item = begin < end ? quotient(end - 1, a_item) : quotient(begin, a_item) - 1;
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

// A Work of one part, all its items a group.
template <typename Work>
struct OnePart : Work {
  static constexpr bool kIsOneGroup = true;
  const PackedMatrices& w;
  int items;

  __device__ Group first_group() const { return {0, 0, items, 1}; }
  __device__ Group next_group(const Group&) const { return {}; }
  __device__ const PackedMatrices& matrices(int) const { return w; }
  __device__ int slices(int) const { return w.slices; }
  __device__ auto cursor_of(int, int item) const { return Work::cursor_of(item); }
};

// A warp's way through the matrices ahead of its products, from group to group: the ring.
template <typename Unit, int kTiles, typename Shares, typename Count, typename Work>
class SweepRing {
 public:
  using Shape = SweepShape<Unit, kTiles>;

  __device__ SweepRing(const Work& work, const Count& warps, uint8_t* memory)
      : work_(work), warps_(warps), memory_(memory), next_(work.first_group()) {
    open();
  }
  // The stage that is read next, or filled again.
  __device__ __forceinline__ const uint8_t* stage() const { return memory_ + stage_; }
  // Fills it with the next units, while there are any.
  __device__ __forceinline__ void fetch(int lane) {
    bool is_last = false;
    if (fetches_) {
      const L2Policy policy = is_read_once_ ? L2Policy::read_once() : L2Policy::read_again();
      Unit::fetch(memory_ + stage_, data_, lane, policy);
      if constexpr (kTiles > 1) {
        static_assert(kTiles == 2);
        if (is_whole_) {
          Unit::fetch(memory_ + stage_ + Unit::kBytes, data_ + tile_bytes_, lane, policy);
        }
      }
      data_ += Unit::kBytes;
      is_last = ++unit_ == end_unit_;
    }
    commit_copies();
    stage_ = stage_ + Shape::kStageBytes == Shape::kRingBytes ? 0 : stage_ + Shape::kStageBytes;
    if (!is_last) return;
    share_.advance();
    if (share_.is_done()) {
      fetches_ = false;
      if constexpr (!Work::kIsOneGroup) open();
      return;
    }
    locate();
  }

 private:
  // The next group of which this warp has a share.
  __device__ __forceinline__ void open() {
    while (!fetches_ && next_.segments > 0) {
      share_ = Shares(next_, work_.slices(next_.part), warps_);
      part_ = next_.part, fetches_ = !share_.is_done();
      next_ = work_.next_group(next_);
    }
    if (fetches_) locate();
  }
  __device__ __forceinline__ void locate() {
    const PackedMatrices& w = work_.matrices(part_);
    unit_ = share_.first_slice() * w.units_per_slice;
    end_unit_ = min(share_.end_slice() * w.units_per_slice, w.units);
    const auto at = work_.cursor_of(part_, share_.item);
    const int tile = work_.tile(at);
    is_whole_ = tile + kTiles <= w.tiles;
    tile_bytes_ = w.tile_bytes;
    is_read_once_ = work_.is_read_once(at);
    data_ = w.data + size_t(unsigned(work_.matrix(at) * w.tiles + tile)) * w.tile_bytes +
            unit_ * Unit::kBytes;
  }

  const Work& work_;
  Count warps_;
  uint8_t* memory_;
  int stage_ = 0, unit_ = 0, end_unit_ = 0;
  Group next_;
  int part_ = 0;
  Shares share_{};  // of part_: what is being fetched
  const uint8_t* data_ = nullptr;
  uint32_t tile_bytes_ = 0;
  bool fetches_ = false, is_read_once_ = true,
       is_whole_ = true;  // whole: there are all of the item's tiles
};

// The warps that multiply, `warps` of a block. Count: how numbers that others are divided by come,
// int or Divisor.
template <typename Unit, typename Inputs, typename Shares, int kTiles, typename Count = int>
class Sweep {
 public:
  using Shape = SweepShape<Unit, kTiles>;

  // By all threads, which meet before run().
  __device__ Sweep(const Count& warps, uint8_t* shared)
      : warps_(warps),
        handed_(reinterpret_cast<uint64_t*>(shared)),
        totals_(reinterpret_cast<float4*>(shared + Shape::kBarrierBytes) +
                int(threadIdx.x) % kWarp),
        ring_(shared + Shape::kBarrierBytes + int(warps) * Shape::kTotalsBytes +
              int(threadIdx.x) / kWarp * Shape::kRingBytes) {
    const int warp = int(threadIdx.x) / kWarp;
    if (int(threadIdx.x) % kWarp == 0 && warp < warps) {
      start_barrier(handed_ + warp, kWarp);
      start_barrier(taken_of(warp), kWarp);
    }
  }

  // Multiplies all items, each of kTiles tiles, by each of the warps. A Work here has, of
  // stream.cuh's, matrix(), tile(), columns(), input_row(), begin() and finish(), and says
  //   Group first_group(), Group next_group(group), bool kIsOneGroup
  //   PackedMatrices matrices(int part), Count slices(int part): of K
  //   Cursor cursor_of(int part, int item)
  //   bool is_read_once(cursor): its matrix, by all warps together
  //   int segment_of(int part, int item): rising, one after another (for StagedInputs)
  template <typename Work>
  __device__ __forceinline__ void run(const Work& work, Inputs& inputs);

 private:
  __device__ __forceinline__ uint64_t* taken_of(int warp) const {
    return handed_ + kMaxSweepWarps + warp;
  }

  Count warps_;
  uint64_t* handed_;  // warp i hands over at barrier i, and may again after taken_of(i)'s
  float4* totals_;    // a lane's
  uint8_t* ring_;
};

template <typename Unit, typename Inputs, typename Shares, int kTiles, typename Count>
template <typename Work>
__device__ __forceinline__ void Sweep<Unit, Inputs, Shares, kTiles, Count>::run(const Work& work,
                                                                                Inputs& inputs) {
  using Cursor = typename Work::Cursor;
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp, g = lane / 4;
  int num_taken = 0, num_handed = 0;
  SweepRing<Unit, kTiles, Shares, Count, Work> ring(work, warps_, ring_);
#pragma unroll 1
  for (int s = 0; s < Shape::kStages; ++s) ring.fetch(lane);
  work.begin();

#pragma unroll 1
  for (Group group = work.first_group(); group.segments > 0; group = work.next_group(group)) {
    const PackedMatrices& w = work.matrices(group.part);
#pragma unroll 1
    for (Shares share(group, work.slices(group.part), warps_); !share.is_done(); share.advance()) {
      const Cursor at = work.cursor_of(group.part, share.item);
      const int first_slice = share.first_slice(), end_slice = share.end_slice();
      const int tile = work.tile(at), own_tiles = min(kTiles, w.tiles - tile);
      float factors[kTiles][2];
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const float* from =
            w.factors + g +
            size_t(unsigned(work.matrix(at) * w.tiles + tile + min(i, own_tiles - 1))) * kTileRows;
        factors[i][0] = from[0], factors[i][1] = from[8];
      }
      if constexpr (Inputs::kIsStaged) {
        const int segment = work.segment_of(group.part, share.item);
        inputs.begin(segment - work.segment_of(group.part, group.from),
                     first_slice * w.units_per_slice);
      } else {
        inputs.begin(work, at, first_slice * w.units_per_slice);
      }
      float sum[kTiles][4] = {}, total[kTiles][4] = {};
      if (Shares::kHandsOver && first_slice > 0) {
        wait_for_phase(handed_ + warp - 1, num_taken++ & 1);
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
          registers[i] = Unit::read(ring.stage() + i * Unit::kBytes, lane);
        }
        ring.fetch(lane);
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
      if (Shares::kHandsOver && end_slice < w.slices) {
        wait_for_phase(taken_of(warp), (num_handed++ & 1) ^ 1);
        write_sums(total, totals_ + warp * kTiles * kWarp);
        arrive_at(handed_ + warp);
        continue;
      }
      const int columns = work.columns(at);
#pragma unroll
      for (int i = 0; i < kTiles * 2; ++i) {
        const int part = i / 2, column = lane % 4 * 2 + i % 2;
        if (column >= columns || part >= own_tiles) continue;
        work.finish(at, tile + part, g, column, total[part][i % 2] * factors[part][0],
                    total[part][2 + i % 2] * factors[part][1]);
      }
    }
    if constexpr (Inputs::kIsStaged) inputs.leave(group.segments);
  }
}

}  // namespace nibble::cuda
