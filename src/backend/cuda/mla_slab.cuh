// What both kernels of attend_slab share: their task, copies of its tiles, the softmax of a tile,
// and a lane's rows of outputs. A lane (g, t) has rows g and g + 8 of 16; of scores and outputs it
// has columns 2 t and 2 t + 1 of each 8. Device code.
#pragma once

#include "backend/cuda/mla_stages.h"

namespace nibble::cuda {

inline constexpr int kTile = kPanelRows;         // positions
inline constexpr int kPieces = kQuery * 2 / 16;  // of 16 bytes, a row
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

// Where panel `panel` of a tile's keys lies; the last is the rope key, which heads share.
__device__ __forceinline__ const bf16* keys_at(const SlabTask& task, int head, int tile,
                                               int panel) {
  return panel < kNope / 64
             ? task.slab.keys_values +
                   ((int64_t(tile) * task.heads + head) * kHeadPanels + panel) * kPanel
             : task.slab.ropes + int64_t(tile) * kPanel;
}
__device__ __forceinline__ const bf16* values_at(const SlabTask& task, int head, int tile,
                                                 int panel) {
  return keys_at(task, head, tile, 0) + (kNope / 64 + panel) * kPanel;
}

// place(row, piece): where a piece goes in shared memory.
template <int kThreads, typename Place>
__device__ __forceinline__ void copy_panel(const bf16* panel, int index, Place place) {
#pragma unroll
  for (int i = 0; i < kTile * 8 / kThreads; ++i) {
    const int row = i * (kThreads / 8) + int(threadIdx.x) / 8, piece = int(threadIdx.x) % 8;
    copy_async_16(place(row, index * 8 + piece), panel + panel_offset(row, piece));
  }
}
template <int kThreads, typename Place>
__device__ __forceinline__ void copy_keys(const SlabTask& task, int head, int tile, Place place) {
#pragma unroll 1
  for (int panel = 0; panel < kQuery / 64; ++panel) {
    copy_panel<kThreads>(keys_at(task, head, tile, panel), panel, place);
  }
}
template <int kThreads, typename Place>
__device__ __forceinline__ void copy_values(const SlabTask& task, int head, int tile, Place place) {
#pragma unroll 1
  for (int panel = 0; panel < kValue / 64; ++panel) {
    copy_panel<kThreads>(values_at(task, head, tile, panel), panel, place);
  }
}

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

// Both at once, for lanes that have two neighbours each.
__device__ __forceinline__ void store_pair(bf16* to, float x, float y) {
  *reinterpret_cast<uint32_t*>(to) = pack(x, y, bf16());
}
__device__ __forceinline__ void store_pair(float* to, float x, float y) {
  *reinterpret_cast<float2*>(to) = make_float2(x, y);
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
        tops[r] = task.carry.tops[at[r]];
        sums[r] = reinterpret_cast<const float*>(task.carry.sums)[at[r] * 4 + t];
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
      float sum = sums[r] + __shfl_xor_sync(0xffffffffu, sums[r], 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (rows[r] >= task.rows) continue;
      if (base + rows[r] > task.range.count) {
        if (t == 0) task.carry.tops[at[r]] = tops[r];
        reinterpret_cast<float*>(task.carry.sums)[at[r] * 4 + t] = sums[r];
#pragma unroll
        for (int n = 0; n < 32; ++n) {
          *reinterpret_cast<float2*>(task.carry.values + at[r] * kValue + n * 8 + 2 * t) =
              make_float2(o[n][2 * r], o[n][2 * r + 1]);
        }
      } else if (base + rows[r] > 0) {
        const float scale = 1.0f / sum;
        Out* to = out.row(task.first_row + rows[r]) + head * kValue + 2 * t;
#pragma unroll
        for (int n = 0; n < 32; ++n) {
          store_pair(to + n * 8, o[n][2 * r] * scale, o[n][2 * r + 1] * scale);
        }
      }
    }
  }
};

}  // namespace nibble::cuda
