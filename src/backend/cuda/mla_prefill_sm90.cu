// attend_slab on Hopper: as in mla_prefill.cu, but its products are warpgroup MMAs, which read keys
// and values from shared memory by themselves and run while the warps are at the softmax. A block
// has two warpgroups of 64 rows each. In iteration i, the scores of tile i + 1 and the outputs of
// tile i are multiplied; when the scores are there, their softmax runs beside the outputs' product.
// Two tiles of keys and two of values are in shared memory, in the 128-byte swizzle of that
// hardware.
//
// Only in builds for sm_90a.
#include "backend/cuda/dtypes.h"
#include "backend/cuda/mla_slab.cuh"
#include "backend/cuda/mla_warpgroup.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256, kRows = 128;
constexpr size_t kShared = size_t(kRows + 4 * kTile) * kQuery * sizeof(bf16) + 1024;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void start_scores(float (&s)[8][4], const bf16* queries,
                                             const bf16* keys) {
  begin_products();
#pragma unroll
  for (int j = 0; j < kQuery / 16; ++j) {  // panels of 64 columns, four steps each
    const bf16* q = queries + j / 4 * (kRows * 64) + j % 4 * 16;
    const bf16* k = keys + j / 4 * (kTile * 64) + j % 4 * 16;
    multiply_64(s, describe(q, 16), describe(k, 16), j > 0);
  }
  commit_products();
}

__device__ __forceinline__ void start_outputs(float (&o)[32][4], const uint32_t (&p)[4][4],
                                              const bf16* values) {
  begin_products();
#pragma unroll
  for (int j = 0; j < kTile / 16; ++j) {
    multiply_256(o, p[j], describe(values + j * (16 * 64), kTile * 64 * sizeof(bf16)));
  }
  commit_products();
}

__device__ __forceinline__ void pack_probabilities(const float (&s)[8][4], uint32_t (&p)[4][4]) {
#pragma unroll
  for (int j = 0; j < kTile / 16; ++j) {
    p[j][0] = pack(s[2 * j][0], s[2 * j][1], bf16());
    p[j][1] = pack(s[2 * j][2], s[2 * j][3], bf16());
    p[j][2] = pack(s[2 * j + 1][0], s[2 * j + 1][1], bf16());
    p[j][3] = pack(s[2 * j + 1][2], s[2 * j + 1][3], bf16());
  }
}

#endif

// Blocks: x = 128 rows, the last first, for they have most to do; y = head.
template <typename Out>
__global__ void __launch_bounds__(kThreads, 1) slab_sm90_kernel(SlabTask task, Matrix<Out> out) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t memory[];
  bf16* const queries =
      reinterpret_cast<bf16*>((reinterpret_cast<uintptr_t>(memory) + 1023) / 1024 * 1024);
  bf16* const keys = queries + kRows * kQuery;
  bf16* const values = keys + 2 * kTile * kQuery;
  const int head = blockIdx.y, begin = (gridDim.x - 1 - blockIdx.x) * kRows;
  const int warp = threadIdx.x / kWarp, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  const int base = task.range.context - task.range.first + 1;
  const int most = min(task.range.count, base + min(begin + kRows, task.rows) - 1);
  const int tiles = (most + kTile - 1) / kTile;
  wait_for_predecessor();
  let_successor_begin();
  if (most <= 0) return;
  const TileCopy<kThreads> copy_tiles(task, head);
  const auto copy_pair = [&](int i) {  // keys of tile i, values of tile i - 1
    if (i < tiles) {
      copy_tiles.copy_keys(i * kTile, [&](int row, int piece) {
        return panel_piece_at<kTile>(keys + i % 2 * (kTile * kQuery), row, piece);
      });
    }
    if (i > 0 && i <= tiles) {
      copy_tiles.copy_values((i - 1) * kTile, [&](int row, int piece) {
        return panel_piece_at<kTile>(values + (i - 1) % 2 * (kTile * kQuery), row, piece);
      });
    }
    commit_copies();
  };
  copy_queries<kThreads>(task, head, begin, kRows, [&](int row, int piece) {
    return panel_piece_at<kRows>(queries, row, piece);
  });
  copy_pair(0);
  copy_pair(1);

  SlabRow rows(task, begin + warp * 16 + g, head);
  float o[32][4], s[8][4], factors[2];
  uint32_t p[4][4];
  rows.load(task, t, o);
  const bf16* const group_queries = queries + warp / 4 * (64 * 64);
  wait_for_copies<1>();
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  const auto soften = [&](int i) {  // the scores of tile i
    weigh(s, rows.limits(base, i * kTile), rows.tops, rows.sums, factors);
  };
  const auto next_tiles = [&](int i) {
    wait_for_copies<0>();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
  };
  start_scores(s, group_queries, keys);
  wait_for_products<0>();
  settle(s);
  soften(0);
  pack_probabilities(s, p);
  rescale(factors, o);
  for (int i = 0; i + 1 < tiles; ++i) {
    next_tiles(i);
    settle(s);
    start_scores(s, group_queries, keys + (i + 1) % 2 * (kTile * kQuery));
    settle(o);
    start_outputs(o, p, values + i % 2 * (kTile * kQuery));
    copy_pair(i + 2);
    wait_for_products<1>();
    settle(s);
    soften(i + 1);
    // The outputs are waited for behind a branch on what the softmax gave, for else the wait is
    // moved before it.
    const bool rescales =
        factors[0] != 1.0f || factors[1] != 1.0f || !(rows.sums[0] >= 0) || !(rows.sums[1] >= 0);
    if (__any_sync(0xffffffffu, rescales)) {
      wait_for_products<0>();
      settle(o);
      rescale(factors, o);
    } else {
      asm volatile("wgmma.wait_group.sync.aligned 0;  // nothing to rescale" ::: "memory");
      settle(o);
    }
    pack_probabilities(s, p);
  }
  next_tiles(tiles - 1);
  settle(o);
  start_outputs(o, p, values + (tiles - 1) % 2 * (kTile * kQuery));
  wait_for_products<0>();
  settle(o);
  rows.store(task, base, head, t, o, out);
#endif
}

}  // namespace

bool attend_slab_sm90(const Context& context, const SlabTask& task, Tensor out) {
#ifdef NIBBLE_CUDA_SM90A
  if (context.device.arch != 90) return false;
  with_activation(out.dtype, [&]<typename Out>(Out) {
    const auto kernel = slab_sm90_kernel<Out>;
    allow_shared(kernel, kShared);
    launch(context,
           {.blocks = {blocks_for(task.rows, kRows), unsigned(task.heads)},
            .threads = kThreads,
            .shared_bytes = kShared},
           kernel, task, Matrix<Out>(out));
  });
  return true;
#else
  (void)context, (void)task, (void)out;
  return false;
#endif
}

}  // namespace nibble::cuda
