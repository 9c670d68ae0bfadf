// attend_slab: expanded heads of 256, a block for one head and 16 rows a warp
//
//   s = q k^T        p = 2^(s - top)        o = p v                 over tiles of 64 positions
//
// with a running softmax. Queries, a tile of keys and one of values are in shared memory (BF16,
// rows of 512 bytes, swizzled); the next keys come while values are multiplied, and the reverse. A
// warp keeps its 16 x 256 outputs in registers.
//
// Not measured: Hopper, which there is to measure on, takes mla_prefill_sm90.cu.
#include "backend/cuda/dtypes.h"
#include "backend/cuda/mla_slab.cuh"

namespace nibble::cuda {
namespace {

__device__ __forceinline__ bf16* piece_at(bf16* tile, int row, int piece) {
  return tile + row * kQuery + (piece ^ (row % 8)) * 8;
}

// Scores of the warp's 16 rows.
__device__ __forceinline__ void score(bf16* queries, bf16* keys, float (&s)[8][4]) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int n = 0; n < 8; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
  for (int j = 0; j < kQuery / 16; ++j) {
    uint32_t a[4];
    load_matrices_4(a, piece_at(queries, warp * 16 + lane % 16, 2 * j + lane / 16));
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      uint32_t b[4];
      load_matrices_4(b, piece_at(keys, n * 16 + lane / 16 * 8 + lane % 8, 2 * j + lane / 8 % 2));
      multiply_bf16(s[2 * n], a, {b[0], b[1]});
      multiply_bf16(s[2 * n + 1], a, {b[2], b[3]});
    }
  }
}

__device__ __forceinline__ void add_values(const float (&s)[8][4], bf16* values,
                                           const float (&factors)[2], float (&out)[32][4]) {
  const int lane = threadIdx.x % kWarp;
  rescale(factors, out);
#pragma unroll
  for (int j = 0; j < kTile / 16; ++j) {
    const uint32_t a[4] = {pack(s[2 * j][0], s[2 * j][1], bf16()),
                           pack(s[2 * j][2], s[2 * j][3], bf16()),
                           pack(s[2 * j + 1][0], s[2 * j + 1][1], bf16()),
                           pack(s[2 * j + 1][2], s[2 * j + 1][3], bf16())};
#pragma unroll
    for (int n = 0; n < kValue / 16; ++n) {
      uint32_t b[4];
      load_matrices_4_transposed(b, piece_at(values, j * 16 + lane % 16, 2 * n + lane / 16));
      multiply_bf16(out[2 * n], a, {b[0], b[1]});
      multiply_bf16(out[2 * n + 1], a, {b[2], b[3]});
    }
  }
}

// Blocks: x = 16 kWarps rows, the last first, for they have most to do; y = head.
template <int kWarps, typename Out>
__global__ void __launch_bounds__(kWarps* kWarp, 1) slab_kernel(SlabTask task, Matrix<Out> out) {
  constexpr int kRows = 16 * kWarps, kThreads = kWarps * kWarp;
  extern __shared__ __align__(128) uint8_t memory[];
  bf16* const queries = reinterpret_cast<bf16*>(memory);
  bf16* const keys = queries + kRows * kQuery;
  bf16* const values = keys + kTile * kQuery;
  const int head = blockIdx.y, begin = (gridDim.x - 1 - blockIdx.x) * kRows;
  const int warp = threadIdx.x / kWarp, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  // Row r attends to base + r positions of the slab, the block's last row to `most`.
  const int base = task.range.context - task.range.first + 1;
  const int most = min(task.range.count, base + min(begin + kRows, task.rows) - 1);
  wait_for_predecessor();
  let_successor_begin();
  if (most <= 0) return;
  const auto key_place = [&](int row, int piece) { return piece_at(keys, row, piece); };
  const auto value_place = [&](int row, int piece) { return piece_at(values, row, piece); };
  copy_queries<kThreads>(task, head, begin, kRows,
                         [&](int row, int piece) { return piece_at(queries, row, piece); });
  copy_keys<kThreads>(task, head, 0, key_place);
  commit_copies();

  SlabRow rows(task, begin + warp * 16 + g, head);
  float o[32][4];
  rows.load(task, t, o);
  for (int first = 0; first < most; first += kTile) {
    copy_values<kThreads>(task, head, first / kTile, value_place);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    float s[8][4], factors[2];
    score(queries, keys, s);
    __syncthreads();
    if (first + kTile < most) copy_keys<kThreads>(task, head, first / kTile + 1, key_place);
    commit_copies();
    weigh(s, rows.limits(base, first), rows.tops, rows.sums, factors);
    wait_for_copies<1>();
    __syncthreads();
    add_values(s, values, factors, o);
    __syncthreads();
  }
  rows.store(task, base, head, t, o, out);
}

template <int kWarps, typename Out>
void launch_slab(const Context& context, const SlabTask& task, const Matrix<Out>& out) {
  constexpr size_t kShared = size_t(16 * kWarps + 2 * kTile) * kQuery * sizeof(bf16);
  const auto kernel = slab_kernel<kWarps, Out>;
  allow_shared(kernel, kShared);
  launch(context,
         {.blocks = {blocks_for(task.rows, 16 * kWarps), unsigned(task.heads)},
          .threads = kWarps * kWarp,
          .shared_bytes = kShared},
         kernel, task, out);
}

}  // namespace

void attend_slab(const Context& context, const bf16* queries, const Expanded& slab,
                 const SlabRange& range, const MlaShape& shape, RowRange rows, Carry carry,
                 Tensor out) {
  const SlabTask task{.queries = queries,
                      .slab = slab,
                      .range = range,
                      .carry = carry,
                      .heads = shape.heads,
                      .first_row = rows.first,
                      .rows = rows.count};
  if (attend_slab_sm90(context, task, out)) return;
  with_activation(out.dtype, [&]<typename Out>(Out) {
    if (context.device.shared_bytes >= size_t(128) << 10) {
      launch_slab<8, Out>(context, task, Matrix<Out>(out));
    } else {
      launch_slab<4, Out>(context, task, Matrix<Out>(out));
    }
  });
}

}  // namespace nibble::cuda
