// The products of up to 16 rows with many tiles: a warp takes a tile at a time through all of K, so
// that warps never wait for each other. Device code of experts.
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

#include "backend/cuda/stream.cuh"

namespace nibble::cuda {

template <typename Unit>
struct SweepShape {
  static constexpr int kStages = Unit::kProducts == 1 ? 4 : 2;  // of a warp

  static constexpr size_t shared_bytes(int warps) { return size_t(warps) * kStages * Unit::kBytes; }
};

// All items of a Work's segment have the same rows of inputs.
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

  // All warps at once: brings the rows of an item's segment, zeros beyond them. A warp a row.
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
  __device__ __forceinline__ void begin(const Work&, typename Work::Cursor) {
    next_ = staged_ + int(threadIdx.x) % kWarp / 4 * pitch_ + int(threadIdx.x) % 4 * 32;
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
  __device__ void meet(const Work&, typename Work::Cursor) {}
  template <typename Work>
  __device__ __forceinline__ void begin(const Work& work, typename Work::Cursor at) {
    const int g = int(threadIdx.x) % kWarp / 4, column = int(threadIdx.x) % 4 * kBlockInputs;
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

// Multiplies `items` items from `first` on, the block's warps in turn. Work: as in stream.cuh, and
//   int segment(cursor)   rises by one from segment to segment
//   Cursor segment_begin(int segment)
template <typename Unit, template <typename> typename Inputs, typename Work>
__device__ __forceinline__ void sweep_products(const PackedMatrices& w, const Activations& x,
                                               const Work& work, typename Work::Cursor first,
                                               int items, uint8_t* shared) {
  using Cursor = typename Work::Cursor;
  constexpr int kStages = SweepShape<Unit>::kStages, kRingBytes = kStages * Unit::kBytes;
  const int warps = int(blockDim.x) / kWarp;
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int g = lane / 4, t = lane % 4;
  uint8_t* ring = shared + warp * kRingBytes;

  int left_items = (items - warp + warps - 1) / warps;
  Cursor at = left_items > 0 ? work.next(first, warp) : first;

  Cursor next = at;  // to fetch
  int unfetched = left_items, next_unit = 0, stage = 0;
  const uint8_t* data = nullptr;
  const auto locate = [&] {
    data = w.data + size_t(unsigned(work.matrix(next) * w.tiles + work.tile(next))) * w.tile_bytes;
  };
  const auto fetch = [&] {
    if (unfetched > 0) {
      Unit::fetch(ring + stage, data, lane);
      data += Unit::kBytes;
      if (++next_unit == w.units) {
        next_unit = 0;
        if (--unfetched > 0) next = work.next(next, warps), locate();
      }
    }
    commit_copies();
    stage = stage + Unit::kBytes == kRingBytes ? 0 : stage + Unit::kBytes;
  };
  if (unfetched > 0) locate();
#pragma unroll 1
  for (int s = 0; s < kStages; ++s) fetch();
  work.begin();
  if (items == 0) return;

  Inputs<Unit> inputs(w, x, shared + warps * kRingBytes);
  const int end_segment = work.segment(work.next(first, items - 1)) + 1;
#pragma unroll 1
  for (int segment = work.segment(first); segment < end_segment; ++segment) {
    inputs.meet(work, work.segment_begin(segment));
#pragma unroll 1
    for (; left_items > 0 && work.segment(at) == segment; --left_items) {
      const int tile = work.tile(at), columns = work.columns(at);
      const float* factors =
          w.factors + size_t(unsigned(work.matrix(at) * w.tiles + tile)) * kTileRows + g;
      const float low_factor = factors[0], high_factor = factors[8];
      inputs.begin(work, at);
      const auto multiply = [&]<int kGroups>(std::integral_constant<int, kGroups>) {
        float sum[kGroups][4] = {}, total[kGroups][4] = {};
        int left = w.units_per_slice;
#pragma unroll 1
        for (int unit = 0; unit < w.units; ++unit) {
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
          if (--left == 0 || unit + 1 == w.units) {
            left = w.units_per_slice;
#pragma unroll
            for (int i = 0; i < kGroups * 4; ++i) {
              total[i / 4][i % 4] += sum[i / 4][i % 4], sum[i / 4][i % 4] = 0;
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kGroups * 2; ++i) {
          const int column = i / 2 * kRowGroup + t * 2 + i % 2;
          if (column >= columns) continue;
          work.finish(at, tile, g, column, total[i / 2][i % 2] * low_factor,
                      total[i / 2][2 + i % 2] * high_factor);
        }
      };
      if (Inputs<Unit>::kGroups > 1 && columns > kRowGroup) {
        multiply(std::integral_constant<int, Inputs<Unit>::kGroups>());
      } else {
        multiply(std::integral_constant<int, 1>());
      }
      if (left_items > 1) at = work.next(at, warps);
    }
  }
}

}  // namespace nibble::cuda
