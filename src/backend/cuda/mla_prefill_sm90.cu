// attend_slab on Hopper: as in mla_prefill.cu, but its products are warpgroup MMAs, which read keys
// and values from shared memory by themselves and run while the warps are at the softmax. A block
// has two warpgroups of 64 rows each, which go on by themselves, and a warp that brings tiles of
// keys and of values by bulk copies into a ring of kSlots. In iteration i, the scores of tile i + 1
// and the outputs of tile i are multiplied; when the scores are there, their softmax runs beside
// the outputs' product, and beside the other warpgroup's.
//
// Shared memory is the limit next to the tensor cores: of a tile of 64 positions, both factors of
// the scores, values and the tile's arrival take 4 KiB a position, 125 of its 128 bytes a clock at
// full rate. Part of the queries therefore stays in registers.
//
// Only in builds for sm_90a. H100, 2,048 rows, 20 heads, expansion counted: 337 TFLOP/s from empty,
// 510 behind 6,144 positions, 524 behind 30,720: 53, 80 and 82 % of 643 by mma.sync.
#include "backend/cuda/bulk.cuh"
#include "backend/cuda/dtypes.h"
#include "backend/cuda/mla_slab.cuh"
#include "backend/cuda/mla_warpgroup.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWorkers = 256, kThreads = kWorkers + 128, kRows = 128;
// A thread of a warpgroup: all have 168 at first.
constexpr int kWorkerRegisters = 240, kBringerRegisters = 24;
constexpr int kSlots = 5;      // tiles of keys or of values
constexpr int kHeldSteps = 4;  // of the scores' 16: queries in registers
constexpr int kTileValues = kTile * kQuery;
constexpr int kTileBytes = kTileValues * sizeof(bf16);
constexpr int kPanelBytes = kPanel * sizeof(bf16);

struct Barriers {
  uint64_t full[kSlots], empty[kSlots];
};
constexpr size_t kShared =
    size_t(kRows * kQuery + kSlots * kTileValues) * sizeof(bf16) + sizeof(Barriers) + 1024;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Where in the ring the next tile is.
struct Place {
  int slot = 0, phase = 0;
  __device__ __forceinline__ void advance() {
    if (++slot == kSlots) slot = 0, phase ^= 1;
  }
};

// Keys of tile 0, and then those of tile i + 1 before the values of tile i.
__device__ void bring_tiles(const SlabTask& task, int head, int tiles, bf16* ring, Barriers& b) {
  Place place;
  const auto next_slot = [&] {
    wait_for_phase(&b.empty[place.slot], place.phase ^ 1);
    arrive_expecting(&b.full[place.slot], kTileBytes);
    return ring + place.slot * kTileValues;
  };
  for (int i = 0; i <= tiles; ++i) {
    if (i < tiles) {
      bf16* const to = next_slot();
      constexpr int kNopeBytes = kNope / 64 * kPanelBytes;
      copy_bulk(to, keys_at(task, head, i, 0), kNopeBytes, &b.full[place.slot]);
      copy_bulk(to + kNope / 64 * kPanel, keys_at(task, head, i, kNope / 64), kPanelBytes,
                &b.full[place.slot]);
      place.advance();
    }
    if (i > 0) {
      copy_bulk(next_slot(), values_at(task, head, i - 1, 0), kTileBytes, &b.full[place.slot]);
      place.advance();
    }
  }
}

__device__ __forceinline__ void start_scores(float (&s)[8][4],
                                             const uint32_t (&held)[kHeldSteps][4],
                                             const bf16* queries, const bf16* keys) {
  begin_products();
#pragma unroll
  for (int j = 0; j < kQuery / 16; ++j) {  // panels of 64 columns, four steps each
    const uint64_t k = describe(keys + j / 4 * kPanel + j % 4 * 16, 16);
    if (j < kHeldSteps) {
      multiply_async(s, held[j], k, j > 0);
    } else {
      multiply_64(s, describe(queries + j / 4 * (kRows * 64) + j % 4 * 16, 16), k, 1);
    }
  }
  end_products();
}

__device__ __forceinline__ void start_outputs(float (&o)[32][4], const uint32_t (&p)[4][4],
                                              const bf16* values) {
  begin_products();
#pragma unroll
  for (int j = 0; j < kTile / 16; ++j) {
    multiply_256(o, p[j], describe(values + j * (16 * 64), kPanelBytes));
  }
  end_products();
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

// A warpgroup's 64 rows of queries; `queries` is where the block's first is.
__device__ __forceinline__ void load_queries(const SlabTask& task, int head, int begin,
                                             bf16* queries, uint32_t (&held)[kHeldSteps][4]) {
  const int group = threadIdx.x / 128, lane = threadIdx.x % kWarp;
  for (int i = threadIdx.x % 128; i < 64 * kPieces; i += 128) {
    const int row = group * 64 + i / kPieces, piece = i % kPieces;
    const bool valid = begin + row < task.rows;
    const int64_t from = valid ? begin + row : 0;
    copy_async_16(panel_piece_at<kRows>(queries, row, piece),
                  task.queries + (from * task.heads + head) * kQuery + piece * 8, valid);
  }
  commit_copies();
  wait_for_copies<0>();
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
  const int row = threadIdx.x / kWarp * 16 + lane % 16;
#pragma unroll
  for (int j = 0; j < kHeldSteps; ++j) {
    load_matrices_4(held[j], panel_piece_at<kRows>(queries, row, 2 * j + lane / 16));
  }
}

// Blocks: x = 128 rows, the last first, for they have most to do; y = head.
template <typename Out>
__global__ void __launch_bounds__(kThreads, 1) slab_sm90_kernel(SlabTask task, Matrix<Out> out) {
  extern __shared__ uint8_t memory[];
  bf16* const queries =
      reinterpret_cast<bf16*>((reinterpret_cast<uintptr_t>(memory) + 1023) / 1024 * 1024);
  bf16* const ring = queries + kRows * kQuery;
  Barriers& barriers = *reinterpret_cast<Barriers*>(ring + kSlots * kTileValues);
  const int head = blockIdx.y, begin = (gridDim.x - 1 - blockIdx.x) * kRows;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int base = task.range.context - task.range.first + 1;
  const int most = min(task.range.count, base + min(begin + kRows, task.rows) - 1);
  const int tiles = (most + kTile - 1) / kTile;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kSlots; ++i) {
      start_barrier(&barriers.full[i], 1);
      start_barrier(&barriers.empty[i], kWorkers / kWarp);
    }
    publish_barriers();
  }
  wait_for_predecessor();
  let_successor_begin();
  __syncthreads();
  if (most <= 0) return;
  if (threadIdx.x >= kWorkers) {
    give_registers<kBringerRegisters>();
    if (threadIdx.x == kWorkers) bring_tiles(task, head, tiles, ring, barriers);
    return;
  }
  take_registers<kWorkerRegisters>();

  const int g = lane / 4, t = lane % 4;
  SlabRow rows(task, begin + warp * 16 + g, head);
  float o[32][4], s[8][4], factors[2];
  uint32_t p[4][4], held[kHeldSteps][4];
  load_queries(task, head, begin, queries, held);
  rows.load(task, t, o);
  const bf16* const group_queries = queries + warp / 4 * (64 * 64);
  const auto soften = [&](int i) {  // the scores of tile i
    weigh(s, rows.limits(base, i * kTile), rows.tops, rows.sums, factors);
  };
  const auto release = [&](int slot) {
    if (lane == 0) arrive_at(&barriers.empty[slot]);
  };
  Place place;
  wait_for_phase(&barriers.full[0], 0);
  start_scores(s, held, group_queries, ring);
  wait_for_products<0>();
  settle(s);
  release(0);
  place.advance();
  soften(0);
  pack_probabilities(s, p);
  rescale(factors, o);
  for (int i = 0; i + 1 < tiles; ++i) {
    const int keys = place.slot;
    wait_for_phase(&barriers.full[keys], place.phase);
    settle(s);
    start_scores(s, held, group_queries, ring + keys * kTileValues);
    place.advance();
    const int values = place.slot;
    wait_for_phase(&barriers.full[values], place.phase);
    settle(o);
    start_outputs(o, p, ring + values * kTileValues);
    place.advance();
    wait_for_products<1>();
    settle(s);
    release(keys);
    soften(i + 1);
    // The outputs are waited for behind a branch on what the softmax gave, for else the wait is
    // moved before it.
    const bool rescales =
        factors[0] != 1.0f || factors[1] != 1.0f || !(rows.sums[0] >= 0) || !(rows.sums[1] >= 0);
    if (__any_sync(0xffffffffu, rescales)) {
      wait_for_products<0>();
      settle(o);
      release(values);
      rescale(factors, o);
    } else {
      asm volatile("wgmma.wait_group.sync.aligned 0;  // nothing to rescale" ::: "memory");
      settle(o);
      release(values);
    }
    pack_probabilities(s, p);
  }
  wait_for_phase(&barriers.full[place.slot], place.phase);
  settle(o);
  start_outputs(o, p, ring + place.slot * kTileValues);
  wait_for_products<0>();
  settle(o);
  rows.store(task, base, head, t, o, out);
}

#else

template <typename Out>
__global__ void slab_sm90_kernel(SlabTask, Matrix<Out>) {}

#endif

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
