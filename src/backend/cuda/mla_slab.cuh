// What both kernels of attend_slab share: their task, copies of its tiles, the softmax of a tile,
// and a lane's rows of outputs. A lane (g, t) has rows g and g + 8 of 16; of scores and outputs it
// has columns 2 t and 2 t + 1 of each 8. Device code.
#pragma once

#include "backend/cuda/mla_stages.h"

namespace nibble::cuda {

inline constexpr int kTile = 64;                 // positions
inline constexpr int kPieces = kQuery * 2 / 16;  // of 16 bytes, a row
inline constexpr int kNopePieces = kNope * 2 / 16;
static_assert(kQuery == kValue);

struct SlabTask {
  const bf16* queries = nullptr;
  Expanded slab{};
  SlabRange range{};
  Carry carry{};
  int heads = 0, first_row = 0, rows = 0;
};

// False where the card or the build has no such kernel.
bool attend_slab_sm90(const Context& context, const SlabTask& task, Tensor out);

// place(row, piece): where a piece goes in shared memory.
template <int kThreads, typename Place>
__device__ __forceinline__ void copy_queries(const SlabTask& task, int head, int begin, int count,
                                             Place place) {
  for (int i = threadIdx.x; i < count * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const bool valid = begin + row < task.rows;
    const int64_t from = valid ? begin + row : 0;
    copy_async_16(place(row, piece), task.queries + (from * task.heads + head) * kQuery + piece * 8,
                  valid);
  }
}

// What a thread copies of a tile: one piece of every kRowStep-th row. Rows past the slab's last are
// given that one: they are masked, not missing.
template <int kThreads>
struct TileCopy {
  static constexpr int kRowStep = kThreads / kPieces, kEach = kTile / kRowStep;
  static_assert(kThreads % kPieces == 0 && kRowStep % 4 == 0);
  const bf16 *keys, *values;  // of position `row`
  uint32_t key_stride, value_stride;
  int row, piece, count;

  __device__ __forceinline__ TileCopy(const SlabTask& task, int head)
      : row(threadIdx.x / kPieces), piece(threadIdx.x % kPieces), count(task.range.count) {
    value_stride = task.heads * kUpRows;
    const bf16* first = task.slab.keys_values + head * kUpRows + piece * 8;
    values = first + kNope + row * value_stride;
    const bool is_rope = piece >= kNopePieces;
    key_stride = is_rope ? kRecord : value_stride;
    keys = (is_rope ? task.slab.records + kLatent + (piece - kNopePieces) * 8 : first) +
           row * key_stride;
  }

  // place(row, piece): where a piece goes in shared memory.
  template <typename Place>
  __device__ __forceinline__ void copy(const bf16* from, uint32_t stride, int first,
                                       Place place) const {
    if (first + kTile <= count) {
      const bf16* at = from + uint64_t(first) * stride;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        copy_async_16(place(i * kRowStep + row, piece), at);
        at += kRowStep * stride;
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < kEach; ++i) {
        const int position = min(first + i * kRowStep + row, count - 1);
        copy_async_16(place(i * kRowStep + row, piece),
                      from + int64_t(position - row) * int64_t(stride));
      }
    }
  }
  template <typename Place>
  __device__ __forceinline__ void copy_keys(int first, Place place) const {
    copy(keys, key_stride, first, place);
  }
  template <typename Place>
  __device__ __forceinline__ void copy_values(int first, Place place) const {
    copy(values, value_stride, first, place);
  }
};

// o *= factors, which mostly are 1.
__device__ __forceinline__ void rescale(const float (&factors)[2], float (&o)[32][4]) {
  if (!__any_sync(0xffffffffu, factors[0] != 1.0f || factors[1] != 1.0f)) return;
#pragma unroll
  for (int n = 0; n < 32; ++n) {
    o[n][0] *= factors[0], o[n][1] *= factors[0], o[n][2] *= factors[1], o[n][3] *= factors[1];
  }
}

// `limits`: positions of the tile that either row attends to.
__device__ __forceinline__ void weigh(float (&s)[8][4], int2 limits, float (&tops)[2],
                                      float (&sums)[2], float (&factors)[2]) {
  const int t = threadIdx.x % 4, limit[2] = {limits.x, limits.y};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float top = tops[r];
    if (limit[r] < kTile) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (n * 8 + 2 * t + i >= limit[r]) s[n][2 * r + i] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) top = fmaxf(top, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    factors[r] = power_of_two(tops[r] - top);
    tops[r] = top;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        s[n][2 * r + i] = power_of_two(s[n][2 * r + i] - top);
        sum += s[n][2 * r + i];
      }
    }
    sums[r] = sums[r] * factors[r] + sum;  // of the lane's own columns, joined at the end
  }
}

// The two rows of a lane.
struct SlabRow {
  int rows[2];    // of the segment
  int64_t at[2];  // in the carry
  bool has_carry[2];
  float tops[2] = {-INFINITY, -INFINITY}, sums[2] = {};

  __device__ SlabRow(const SlabTask& task, int first, int head) : rows{first, first + 8} {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      at[r] = int64_t(rows[r]) * task.heads + head;
      has_carry[r] = task.range.first > 0 && rows[r] < task.rows;
    }
  }

  __device__ __forceinline__ int2 limits(int base, int first) const {
    return make_int2(base + rows[0] - first, base + rows[1] - first);
  }

  // What earlier slabs have given.
  __device__ __forceinline__ void load(const SlabTask& task, int t, float (&o)[32][4]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (has_carry[r]) {
        tops[r] = task.carry.sums[at[r]].x;
        sums[r] = t == 0 ? task.carry.sums[at[r]].y : 0;
      }
#pragma unroll
      for (int n = 0; n < 32; ++n) {
        float2 pair = make_float2(0, 0);
        if (has_carry[r]) {
          pair =
              *reinterpret_cast<const float2*>(task.carry.values + at[r] * kValue + n * 8 + 2 * t);
        }
        o[n][2 * r] = pair.x, o[n][2 * r + 1] = pair.y;
      }
    }
  }

  // A row that attends to later slabs, too, goes to the carry.
  template <typename Out>
  __device__ __forceinline__ void store(const SlabTask& task, int base, int head, int t,
                                        const float (&o)[32][4], const Matrix<Out>& out) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sums[r] += __shfl_xor_sync(0xffffffffu, sums[r], 1);
      sums[r] += __shfl_xor_sync(0xffffffffu, sums[r], 2);
      if (rows[r] >= task.rows) continue;
      if (base + rows[r] > task.range.count) {
        if (t == 0) task.carry.sums[at[r]] = make_float2(tops[r], sums[r]);
#pragma unroll
        for (int n = 0; n < 32; ++n) {
          *reinterpret_cast<float2*>(task.carry.values + at[r] * kValue + n * 8 + 2 * t) =
              make_float2(o[n][2 * r], o[n][2 * r + 1]);
        }
      } else if (base + rows[r] > 0) {
        const float scale = 1.0f / sums[r];
        Out* to = out.row(task.first_row + rows[r]) + head * kValue + 2 * t;
#pragma unroll
        for (int n = 0; n < 32; ++n) {
          to[n * 8] = from_float<Out>(o[n][2 * r] * scale);
          to[n * 8 + 1] = from_float<Out>(o[n][2 * r + 1] * scale);
        }
      }
    }
  }
};

}  // namespace nibble::cuda
