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

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256, kRows = 128, kGroupRows = 64;
constexpr size_t kShared = size_t(kRows + 4 * kTile) * kQuery * sizeof(bf16) + 1024;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Where 16-byte piece `piece` of a row lies: panels of 64 columns, rows of 128 bytes.
template <int kTileRows>
__device__ __forceinline__ bf16* panel_piece_at(bf16* tile, int row, int piece) {
  return tile + piece / 8 * (kTileRows * 64) + row * 64 + ((piece ^ row) % 8) * 8;
}

// Describes a tile to a warpgroup MMA: 128-byte swizzle, 1024 bytes from 8 rows to the next 8;
// `panel_bytes` from 64 columns to the next 64, where columns are not what is summed over.
__device__ __forceinline__ uint64_t describe(const bf16* at, uint32_t panel_bytes) {
  return uint64_t(1) << 62 | uint64_t(1024 >> 4) << 32 | uint64_t(panel_bytes >> 4) << 16 |
         (shared_address(at) >> 4 & 0x3fff);
}

__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int pending>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// The compiler knows that products change these, not that they do so until they are waited for.
template <int count>
__device__ __forceinline__ void settle(float (&c)[count][4]) {
#pragma unroll
  for (int n = 0; n < count; ++n) {
    asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
  }
}

#define NIBBLE_FOUR(c, n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define NIBBLE_SIXTEEN(c, n) \
  NIBBLE_FOUR(c, n), NIBBLE_FOUR(c, n + 1), NIBBLE_FOUR(c, n + 2), NIBBLE_FOUR(c, n + 3)

// s += q k^T over 16 columns; both from shared memory. `keep`: 0 starts from zero.
__device__ __forceinline__ void multiply_scores(float (&s)[8][4], uint64_t queries, uint64_t keys,
                                                int keep) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %34, 0;"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, 0, 0;}"
      : NIBBLE_SIXTEEN(s, 0), NIBBLE_SIXTEEN(s, 4)
      : "l"(queries), "l"(keys), "r"(keep));
}

// o += p v over 16 positions; p from registers.
__device__ __forceinline__ void multiply_outputs(float (&o)[32][4], const uint32_t (&p)[4],
                                                 uint64_t values) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, "
      "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "
      "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "
      "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, "
      "%126, %127"
      "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 1;"
      : NIBBLE_SIXTEEN(o, 0), NIBBLE_SIXTEEN(o, 4), NIBBLE_SIXTEEN(o, 8), NIBBLE_SIXTEEN(o, 12),
        NIBBLE_SIXTEEN(o, 16), NIBBLE_SIXTEEN(o, 20), NIBBLE_SIXTEEN(o, 24), NIBBLE_SIXTEEN(o, 28)
      : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(values));
}
#undef NIBBLE_SIXTEEN
#undef NIBBLE_FOUR

__device__ __forceinline__ void start_scores(float (&s)[8][4], const bf16* queries,
                                             const bf16* keys) {
  begin_products();
#pragma unroll
  for (int j = 0; j < kQuery / 16; ++j) {  // panels of 64 columns, four steps each
    const bf16* q = queries + j / 4 * (kRows * 64) + j % 4 * 16;
    const bf16* k = keys + j / 4 * (kTile * 64) + j % 4 * 16;
    multiply_scores(s, describe(q, 16), describe(k, 16), j > 0);
  }
  commit_products();
}

__device__ __forceinline__ void start_outputs(float (&o)[32][4], const uint32_t (&p)[4][4],
                                              const bf16* values) {
  begin_products();
#pragma unroll
  for (int j = 0; j < kTile / 16; ++j) {
    multiply_outputs(o, p[j], describe(values + j * (16 * 64), kTile * 64 * sizeof(bf16)));
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
  const auto copy_pair = [&](int i) {  // keys of tile i, values of tile i - 1
    if (i < tiles) {
      copy_keys<kThreads>(task, head, i * kTile, [&](int row, int piece) {
        return panel_piece_at<kTile>(keys + i % 2 * (kTile * kQuery), row, piece);
      });
    }
    if (i > 0 && i <= tiles) {
      copy_values<kThreads>(task, head, (i - 1) * kTile, [&](int row, int piece) {
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
  const bf16* const group_queries = queries + warp / 4 * (kGroupRows * 64);
  wait_for_copies<1>();
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  const auto soften = [&](int i) {  // the scores of tile i
    weigh(s, rows.limits(base, i * kTile), rows.tops, rows.sums, factors);
  };
  const auto rescale = [&] {
#pragma unroll
    for (int n = 0; n < 32; ++n) {
      o[n][0] *= factors[0], o[n][1] *= factors[0], o[n][2] *= factors[1], o[n][3] *= factors[1];
    }
  };
  const auto next_tiles = [&](int i) {
    wait_for_copies<0>();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    copy_pair(i + 2);
  };
  start_scores(s, group_queries, keys);
  wait_for_products<0>();
  settle(s);
  soften(0);
  pack_probabilities(s, p);
  rescale();
  for (int i = 0; i + 1 < tiles; ++i) {
    next_tiles(i);
    settle(s);
    start_scores(s, group_queries, keys + (i + 1) % 2 * (kTile * kQuery));
    settle(o);
    start_outputs(o, p, values + i % 2 * (kTile * kQuery));
    wait_for_products<1>();
    settle(s);
    soften(i + 1);
    wait_for_products<0>();
    settle(o);
    pack_probabilities(s, p);
    rescale();
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
