// The products of few rows: every matrix streams once through the tensor cores as their A operand,
// the rows of activations are the 8-column B operand. Device code of linear and experts.
//
// A block is `together` row tiles of `slices` warps each. A work item is `together` tiles of one
// matrix for up to 8 * groups rows; a warp multiplies its slice of K and leaves the sum in shared
// memory, where the slices are added in their order. Each warp keeps a ring of units in flight
// through all items of its block, so the first units are under way before the inputs are known.
#pragma once

#include "backend/cuda/fragments.cuh"

namespace nibble::cuda {

inline constexpr int kMaxWarps = 16;
inline constexpr int kRowGroup = 8;  // rows of activations in one product
inline constexpr int kPartialFloats = kTileRows * kRowGroup;

// Blocks a multiprocessor that registers allow: two where one group of rows leaves room, so that
// the next kernel's blocks can begin beside this one's.
template <typename Unit, int groups>
constexpr int kStreamBlocks = groups == 1 && Unit::kProducts == 1 ? 2 : 1;

template <typename Unit>
constexpr size_t stream_shared_bytes(int warps) {
  return size_t(warps) * (Unit::kStages * Unit::kBytes + 2 * kPartialFloats * sizeof(float));
}

// Tiles that a block of at most kMaxWarps warps takes at once.
inline int tiles_together(const PackedMatrices& w) {
  return std::max(1, kMaxWarps / w.slices);
}

// What a warp has on its way: the units of its slice, item by item.
template <typename Unit, typename Work>
class UnitRing {
 public:
  __device__ UnitRing(const PackedMatrices& w, const Work& work, uint8_t* ring, int item, int end,
                      int sub, int slice)
      : w_(w), work_(work), ring_(ring), item_(item), end_(end), sub_(sub) {
    first_unit_ = slice * w.units_per_slice;
    end_unit_ = min(w.units, first_unit_ + w.units_per_slice);
    unit_ = first_unit_;
  }

  __device__ __forceinline__ void fill() {
#pragma unroll
    for (int i = 0; i < Unit::kStages; ++i) fetch();
  }

  // The oldest unit; its place is filled again.
  __device__ __forceinline__ typename Unit::Registers take() {
    wait_for_copies<Unit::kStages - 1>();
    const auto registers = Unit::read(ring_ + stage_ * Unit::kBytes, threadIdx.x % kWarp);
    fetch();
    return registers;
  }

  __device__ int first_unit() const {
    return first_unit_;
  }
  __device__ int end_unit() const {
    return end_unit_;
  }

 private:
  __device__ __forceinline__ void fetch() {
    if (item_ < end_) {
      const int tile = work_.tile(item_, sub_);
      if (tile < w_.tiles) {
        const int64_t place = (int64_t(work_.matrix(item_)) * w_.tiles + tile) * w_.units + unit_;
        Unit::fetch(ring_ + stage_ * Unit::kBytes, w_.data + place * Unit::kBytes,
                    threadIdx.x % kWarp);
      }
      if (++unit_ == end_unit_) unit_ = first_unit_, ++item_;
    }
    commit_copies();
    stage_ = stage_ + 1 == Unit::kStages ? 0 : stage_ + 1;
  }

  const PackedMatrices& w_;
  const Work& work_;
  uint8_t* ring_;
  int item_, end_, sub_;
  int first_unit_, end_unit_, unit_;
  int stage_ = 0;
};

// sum += the products of one chunk's fragments with the inputs of one group of rows.
template <typename Unit>
__device__ __forceinline__ void multiply_chunk(float (&sum)[4],
                                               const uint32_t (&a)[4][Unit::kProducts][4],
                                               const uint32_t (&b)[8]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const uint32_t pair[2] = {b[2 * j], b[2 * j + 1]};
#pragma unroll
    for (int p = 0; p < Unit::kProducts; ++p) multiply_bf16(sum, a[j][p], pair);
  }
}

template <typename Unit>
__device__ __forceinline__ void fragments_of(const typename Unit::Registers& r, int chunk,
                                             uint32_t (&a)[4][Unit::kProducts][4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int p = 0; p < Unit::kProducts; ++p) Unit::fragment(r, chunk, j, p, a[j][p]);
  }
}

// Multiplies the items [begin, end). Work:
//   int matrix(item), int tile(item, sub)        what to multiply; tiles beyond the last are
//   skipped int input_row(item, n)                       row of x of column n, < 0: none int
//   columns(item)                            how many columns there are void begin() waits until x
//   can be read void finish(item, tile, i, n, low, high)     takes the sums of rows i and i + 8 of
//   a tile
template <typename Unit, int groups, typename Work>
__device__ void stream_products(const PackedMatrices& w, const Activations& x, Work& work,
                                int begin, int end, uint8_t* shared) {
  const int warps = int(blockDim.x) / kWarp, warp = int(threadIdx.x) / kWarp;
  const int lane = int(threadIdx.x) % kWarp;
  const int together = warps / w.slices, sub = warp / w.slices;
  float* partials = reinterpret_cast<float*>(shared);
  uint8_t* ring = shared + size_t(2 * warps * kPartialFloats) * sizeof(float);
  UnitRing<Unit, Work> units(w, work, ring + warp * Unit::kStages * Unit::kBytes, begin, end, sub,
                             warp % w.slices);
  units.fill();
  work.begin();

  uint32_t kept[Unit::kChunks][8];  // inputs of the only group, while the unit stays the same
  int kept_row = -2;
  int buffer = 0;
  for (int item = begin; item < end; ++item) {
    float sums[groups][4] = {};
    const int first_row = work.input_row(item, lane / 4);
    for (int unit = units.first_unit(); unit < units.end_unit(); ++unit) {
      const int column = unit * Unit::kInputs + lane % 4 * kBlockInputs;
      if (groups == 1 && (kept_row != first_row || w.units_per_slice > 1)) {
#pragma unroll
        for (int c = 0; c < Unit::kChunks; ++c) {
          load_inputs(x, first_row, column + c * kChunkInputs, kept[c]);
        }
        kept_row = first_row;
      }
      const auto registers = units.take();
#pragma unroll
      for (int c = 0; c < Unit::kChunks; ++c) {
        uint32_t a[4][Unit::kProducts][4];
        fragments_of<Unit>(registers, c, a);
        if (groups == 1) {
          multiply_chunk<Unit>(sums[0], a, kept[c]);
        } else {
#pragma unroll
          for (int n = 0; n < groups; ++n) {
            uint32_t b[8];
            load_inputs(x, work.input_row(item, n * kRowGroup + lane / 4),
                        column + c * kChunkInputs, b);
            multiply_chunk<Unit>(sums[n], a, b);
          }
        }
      }
    }
    const int columns = work.columns(item);
#pragma unroll
    for (int n = 0; n < groups; ++n) {
      if (n * kRowGroup >= columns) break;
      float* to = partials + (buffer * warps + warp) * kPartialFloats;
      *reinterpret_cast<float4*>(to + lane * 4) =
          make_float4(sums[n][0], sums[n][1], sums[n][2], sums[n][3]);
      __syncthreads();
      const int here = min(kRowGroup, columns - n * kRowGroup);
      for (int e = int(threadIdx.x); e < together * 8 * here; e += int(blockDim.x)) {
        const int i = e % 8, column = e / 8 % here, part = e / (8 * here);
        const int tile = work.tile(item, part);
        if (tile >= w.tiles) continue;
        // Where C fragments keep (i, column) and (i + 8, column).
        const float* from = partials + (buffer * warps + part * w.slices) * kPartialFloats +
                            (i * 4 + column / 2) * 4 + column % 2;
        float low = 0, high = 0;
        for (int s = 0; s < w.slices; ++s) {
          low += from[s * kPartialFloats];
          high += from[s * kPartialFloats + 2];
        }
        work.finish(item, tile, i, n * kRowGroup + column, low, high);
      }
      buffer ^= 1;
    }
  }
}

}  // namespace nibble::cuda
