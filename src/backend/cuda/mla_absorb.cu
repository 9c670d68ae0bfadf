// absorb_queries: queries through kv_b's key half, straight from its own format
//
//   q'[h][c] = scale sum_d q[h][d] kv_b[h][d][c]      K = 192, across kv_b's rows
//
// In a step of 64 rows on an H100 7 us, of which its 1.1 MB of kv_b take 0.4.
//
// kv_b is the A factor, 8 rows of the batch are B's columns, so that one row and many take the same
// products in the same order. A block of 8 warps: 128 columns of a head in 4 slices of K, by up to
// 32 rows; slices are added in order. kv_b is fetched before the predecessor has ended.
#include "backend/cuda/dtypes.h"
#include "backend/cuda/mla_stages.h"
#include "backend/cuda/mla_store.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 8;  // of the batch, at once

// 2 chunks of 64 columns x 4 slices of 48 rows of kv_b.
constexpr int kSlices = 4, kSliceSteps = kNope / kSlices / 16, kColumns = 128;
constexpr int kColumnBlocks = kLatent / kColumns;
constexpr int kSumsPitch = kColumns + 4;
constexpr int kTurnedHeads = 2;  // of a block that rotates

struct QueryBlocks {
  int heads = 0, first_row = 0, num_rows = 0, tiles = 0;  // tiles of kRows a block
  float scale = 0;
  bool permuted = false;  // latents of each 8 in the order of place_in_8()

  __device__ int first_turning_block() const { return heads * kColumnBlocks; }
  __device__ int first_storing_block() const {
    return first_turning_block() + (heads + kTurnedHeads - 1) / kTurnedHeads;
  }
};

// Also waits for the predecessor.
template <typename In, typename Out>
__device__ void rotate_queries(const Matrix<In>& q, const Rope& rope, const QueryBlocks& b,
                               const StepView& step, Out* out) {
  const int begin = blockIdx.y * b.tiles * kRows;
  const int count = min(b.tiles * kRows, b.num_rows - begin);
  const int first_head = (blockIdx.x - b.first_turning_block()) * kTurnedHeads;
  constexpr int kPairs = kTurnedHeads * (kRope / 2);
  bool waited = false;
  for (int i = threadIdx.x; i < count * kPairs || !waited; i += kThreads) {
    const int row = begin + min(i / kPairs, count - 1), pair = i % (kRope / 2);
    const int head = first_head + i % kPairs / (kRope / 2);
    const float2 turn = turn_of(rope, step.positions[b.first_row + row], pair);
    if (!waited) {
      wait_for_predecessor();
      waited = true;
    }
    if (i >= count * kPairs || head >= b.heads) continue;
    const In* from = q.row(b.first_row + row) + head * kQuery + kNope + 2 * pair;
    const float2 turned = rotate(turn, to_float(from[0]), to_float(from[1]));
    uint32_t* to = reinterpret_cast<uint32_t*>(out + (int64_t(row) * b.heads + head) * kRecord);
    to[kLatent / 2 + pair] = pack(turned.x * b.scale, turned.y * b.scale, Out());
  }
}

// Also waits for the predecessor.
template <typename In>
__device__ void store_own_row(const StoreRows<In>& store, const Rope& rope, const QueryBlocks& b,
                              const StepView& step) {
  __shared__ StoreShared s;
  const int row = int(blockIdx.y) * b.tiles * kRows + int(blockIdx.x) - b.first_storing_block();
  if (row >= b.num_rows || threadIdx.x >= kStoreThreads) return wait_for_predecessor();
  const StorePlace place(store, rope, step, b.first_row + row);
  wait_for_predecessor();
  store_row(store, b.first_row + row, place, s);
}

// Blocks: x = head and columns, then heads to rotate, then rows to store; y = rows.
template <KvFormat format, typename In, typename Out>
__global__ void __launch_bounds__(kThreads)
    absorb_kernel(Matrix<In> q, LatentUp w, QueryBlocks b, Rope rope, StepView step, Out* out,
                  StoreRows<In> store) {
  using Up = UpRows<format>;
  using Value = typename Up::Value;
  __shared__ float sums[kSlices][kRows][kSumsPitch];
  let_successor_begin();
  if (int(blockIdx.x) >= b.first_storing_block()) return store_own_row(store, rope, b, step);
  if (int(blockIdx.x) >= b.first_turning_block()) return rotate_queries(q, rope, b, step, out);
  const int head = blockIdx.x / kColumnBlocks, columns = blockIdx.x % kColumnBlocks * kColumns;
  const int warp = threadIdx.x / kWarp, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  const int part = warp % 2, slice = warp / 2;
  const int first = slice * kSliceSteps * 16 + 4 * t;  // of the head's rows of kv_b
  uint32_t a[kSliceSteps][4][4];
  float row_scales[kSliceSteps][4];
#pragma unroll
  for (int s = 0; s < kSliceSteps; ++s) {
    const int64_t row = int64_t(head) * kUpRows + first + 16 * s;
    Up::decode(Up::load_across(w, row, columns / 64 + part, g), a[s]);
#pragma unroll
    for (int i = 0; i < 16; ++i) compute_now(a[s][i / 4][i % 4]);
#pragma unroll
    for (int i = 0; i < 4; ++i) row_scales[s][i] = Up::row_scale(w, row + i);
  }
  if constexpr (format == KvFormat::kNvfp4) {
    // No such value ends in a one; but to know it, the factors must be ready before the wait.
    uint32_t any = 0;
#pragma unroll
    for (int i = 0; i < kSliceSteps * 16; ++i) any |= a[i / 16][i / 4 % 4][i % 4];
    if (any & 1) return;
  }
  struct alignas(4 * sizeof(In)) Four {
    In x[4];
  };
  Four x[kSliceSteps];
  const auto load = [&](int begin) {
    const bool is_row = begin + g < b.num_rows;
    const In* from = q.row(b.first_row + (is_row ? begin + g : 0)) + head * kQuery + first;
#pragma unroll
    for (int s = 0; s < kSliceSteps; ++s) {
      x[s] = is_row ? *reinterpret_cast<const Four*>(from + 16 * s) : Four{};
    }
  };
  wait_for_predecessor();
  load(int(blockIdx.y) * b.tiles * kRows);
  for (int tile = 0; tile < b.tiles; ++tile) {
    const int begin = (blockIdx.y * b.tiles + tile) * kRows;
    if (begin >= b.num_rows) return;
    float acc[4][4] = {};
#pragma unroll
    for (int s = 0; s < kSliceSteps; ++s) {
      float v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = to_float(x[s].x[i]) * row_scales[s][i];
      const uint32_t factor[2] = {pack(v[0], v[1], Value()), pack(v[2], v[3], Value())};
#pragma unroll
      for (int j = 0; j < 4; ++j) multiply(acc[j], a[s][j], factor, Value());
    }
    if (tile + 1 < b.tiles) load(begin + kRows);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int column = part * 64 + 8 * g + 2 * j;
      *reinterpret_cast<float2*>(&sums[slice][2 * t][column]) = make_float2(acc[j][0], acc[j][2]);
      *reinterpret_cast<float2*>(&sums[slice][2 * t + 1][column]) =
          make_float2(acc[j][1], acc[j][3]);
    }
    __syncthreads();
    const int row = threadIdx.x / (kColumns / 8), eight = threadIdx.x % (kColumns / 8) * 8;
    if (row >= kRows || begin + row >= b.num_rows) continue;
    float y[8] = {};
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
#pragma unroll
      for (int i = 0; i < 8; ++i) y[i] += sums[s][row][eight + i];
    }
    const float scale = b.scale * w.scale * Up::kScale;
    uint4 packed;
    if (b.permuted) {
      packed = make_uint4(
          pack(y[0] * scale, y[4] * scale, Out()), pack(y[1] * scale, y[5] * scale, Out()),
          pack(y[2] * scale, y[6] * scale, Out()), pack(y[3] * scale, y[7] * scale, Out()));
    } else {
      packed = make_uint4(
          pack(y[0] * scale, y[1] * scale, Out()), pack(y[2] * scale, y[3] * scale, Out()),
          pack(y[4] * scale, y[5] * scale, Out()), pack(y[6] * scale, y[7] * scale, Out()));
    }
    *reinterpret_cast<uint4*>(out + (int64_t(begin + row) * b.heads + head) * kRecord + columns +
                              eight) = packed;
  }
}

}  // namespace

float query_scale(const MlaShape& shape) {
  return float(std::numbers::log2e / std::sqrt(double(shape.query_dim())));
}

void absorb_queries(const Context& context, Tensor q, const LatentUp& kv_b, const MlaShape& shape,
                    RowRange rows, LatentQueries out, const Store* store) {
  const bool is_bf16 = out.format == KvFormat::kBF16 || out.format == KvFormat::kF32;
  const int tiles = rows.count > 32 ? 4 : 1;
  const QueryBlocks blocks{.heads = shape.heads,
                           .first_row = rows.first,
                           .num_rows = rows.count,
                           .tiles = tiles,
                           .scale = query_scale(shape),
                           .permuted = out.format == KvFormat::kNvfp4};
  const Grid grid{
      .blocks = {unsigned(shape.heads * kColumnBlocks) + blocks_for(shape.heads, kTurnedHeads) +
                     (store != nullptr ? std::min<unsigned>(rows.count, tiles * kRows) : 0),
                 blocks_for(rows.count, tiles * kRows)},
      .threads = kThreads};
  const Rope rope = rope_of(shape.rope_dim, shape.rope_theta);
  with_up_format(kv_b.format, [&](auto format) {
    with_activation(q.dtype, [&]<typename In>(In) {
      const StoreRows<In> stores = store != nullptr ? store_rows_of<In>(*store) : StoreRows<In>();
      if (is_bf16) {
        launch(context, grid, absorb_kernel<format(), In, bf16>, Matrix<In>(q), kv_b, blocks, rope,
               context.step, static_cast<bf16*>(out.data), stores);
      } else {
        launch(context, grid, absorb_kernel<format(), In, __half>, Matrix<In>(q), kv_b, blocks,
               rope, context.step, static_cast<__half*>(out.data), stores);
      }
    });
  });
}

}  // namespace nibble::cuda
