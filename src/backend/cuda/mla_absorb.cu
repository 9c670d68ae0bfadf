// kv_b's two halves for rows that attend absorbed, straight from its own format:
//
//   absorb_queries  q'[h][c] = scale sum_d q[h][d] kv_b[h][d][c]         K = 192, across kv_b's
//   rows join_splits     out[h][n] = sum_c o[h][c] kv_b[h][192 + n][c]        K = 512, along kv_b's
//   rows
//
// kv_b is the A factor, 8 rows of the batch are B's columns, so that one row and many take the same
// products in the same order. A block of 8 warps: 128 columns of a head in 4 slices of K, or 64
// outputs of a head in 2 slices; slices are added in order. kv_b is fetched before the predecessor
// has ended.
#include "backend/cuda/dtypes.h"
#include "backend/cuda/mla_stages.h"
#include "backend/cuda/rope.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 8;  // of the batch, at once

// Absorbing: 2 chunks of 64 columns x 4 slices of 48 rows of kv_b.
constexpr int kSlices = 4, kSliceSteps = kNope / kSlices / 16, kColumns = 128;
constexpr int kColumnBlocks = kLatent / kColumns;
constexpr int kSumsPitch = kColumns + 4;

struct QueryBlocks {
  int heads = 0, first_row = 0, num_rows = 0, tiles = 0;  // tiles of kRows a block
  float scale = 0;
  bool permuted = false;  // latents of each 8 in the order of place_in_8()
};

template <typename In, typename Out>
__device__ void rotate_queries(const Matrix<In>& q, const Rope& rope, const QueryBlocks& b,
                               const StepView& step, Out* out) {
  const int begin = blockIdx.y * b.tiles * kRows;
  const int count = min(b.tiles * kRows, b.num_rows - begin);
  const int pairs = b.heads * (kRope / 2);
  for (int i = threadIdx.x; i < count * pairs; i += kThreads) {
    const int row = begin + i / pairs, head = i % pairs / (kRope / 2), pair = i % (kRope / 2);
    const In* from = q.row(b.first_row + row) + head * kQuery + kNope + 2 * pair;
    const float2 turned =
        rotate(rope, step.positions[b.first_row + row], pair, to_float(from[0]), to_float(from[1]));
    uint32_t* to = reinterpret_cast<uint32_t*>(out + (int64_t(row) * b.heads + head) * kRecord);
    to[kLatent / 2 + pair] = pack(turned.x * b.scale, turned.y * b.scale, Out());
  }
}

// Blocks: x = head and columns, and one more x for the rotations; y = rows.
template <KvFormat format, typename In, typename Out>
__global__ void __launch_bounds__(kThreads)
    absorb_kernel(Matrix<In> q, LatentUp w, QueryBlocks b, Rope rope, StepView step, Out* out) {
  using Up = UpRows<format>;
  using Value = typename Up::Value;
  __shared__ float sums[kSlices][kRows][kSumsPitch];
  if (int(blockIdx.x) == b.heads * kColumnBlocks) {
    wait_for_predecessor();
    let_successor_begin();
    rotate_queries(q, rope, b, step, out);
    return;
  }
  const int head = blockIdx.x / kColumnBlocks, columns = blockIdx.x % kColumnBlocks * kColumns;
  const int warp = threadIdx.x / kWarp, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  const int part = warp % 2, slice = warp / 2;
  const int first = slice * kSliceSteps * 16 + t;  // of the head's rows of kv_b
  uint32_t a[kSliceSteps][4][4];
  float row_scales[kSliceSteps][4];
#pragma unroll
  for (int s = 0; s < kSliceSteps; ++s) {
    const int64_t row = int64_t(head) * kUpRows + first + 16 * s;
    Up::decode(Up::load_across(w, row, columns / 64 + part, g), a[s]);
#pragma unroll
    for (int i = 0; i < 4; ++i) row_scales[s][i] = Up::row_scale(w, row + 4 * i);
  }
  wait_for_predecessor();
  let_successor_begin();
  for (int tile = 0; tile < b.tiles; ++tile) {
    const int begin = (blockIdx.y * b.tiles + tile) * kRows;
    if (begin >= b.num_rows) return;
    const bool is_row = begin + g < b.num_rows;
    const In* from = q.row(b.first_row + (is_row ? begin + g : 0)) + head * kQuery + first;
    float acc[4][4] = {};
#pragma unroll
    for (int s = 0; s < kSliceSteps; ++s) {
      float x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[i] = is_row ? to_float(from[16 * s + 4 * i]) * row_scales[s][i] : 0.0f;
      }
      const uint32_t factor[2] = {pack(x[0], x[1], Value()), pack(x[2], x[3], Value())};
#pragma unroll
      for (int j = 0; j < 4; ++j) multiply(acc[j], a[s][j], factor, Value());
    }
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

// Joining. A row's average over all splits is the sum over blocks of kBlockSplits splits, in order,
// each the weighted sum of its splits; a warp makes a block.
constexpr int kBlockSplits = 4, kSlots = 16;  // block sums kept at once
constexpr int kOutputs = 64, kInputPitch = kLatent + 8;

struct JoinShared {
  float blocks[kSlots][kLatent];
  uint16_t input[kRows][kInputPitch];
  float slices[4][kWarp][4];
  float weights[kRows];  // 1 / the sum over splits of 2^(log_sum - top)
  float tops[kRows];
};

struct OutputBlocks {
  int heads = 0, first_row = 0, num_rows = 0, slabs = 0;  // slabs of kOutputs a block
};

__device__ __forceinline__ void add_split(const Partials& p, int64_t split, float weight, int lane,
                                          float (&sum)[16]) {
  const uint4* at = reinterpret_cast<const uint4*>(p.values + split * kLatent);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint4 v = at[i * kWarp + lane];
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float2 pair = unpack(words[k], __half());
      sum[8 * i + 2 * k] = fmaf(weight, pair.x, sum[8 * i + 2 * k]);
      sum[8 * i + 2 * k + 1] = fmaf(weight, pair.y, sum[8 * i + 2 * k + 1]);
    }
  }
}

// The rows' averages become the input of the product.
template <typename Up>
__device__ void join_rows(const Partials& p, const OutputBlocks& b, const StepView& step, int head,
                          int begin, JoinShared& shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int rows = min(kRows, b.num_rows - begin);
  if (warp < rows) {
    const int splits = splits_of(step.positions[b.first_row + begin + warp] + 1);
    const float* logs = p.log_sums + (int64_t(begin + warp) * b.heads + head) * p.max_splits;
    float top = -INFINITY, sum = 0;
    for (int s = lane; s < splits; s += kWarp) top = fmaxf(top, logs[s]);
    top = warp_max(top);
    for (int s = lane; s < splits; s += kWarp) sum += exp2f(logs[s] - top);
    sum = warp_sum(sum);
    if (lane == 0) shared.tops[warp] = top, shared.weights[warp] = 1.0f / sum;
  }
  __syncthreads();
  for (int row = 0; row < kRows; ++row) {
    float total[2] = {};  // of columns 2 threadIdx.x and the next
    const int splits = row < rows ? splits_of(step.positions[b.first_row + begin + row] + 1) : 0;
    const int64_t first = (int64_t(begin + row) * b.heads + head) * p.max_splits;
    const int blocks = (splits + kBlockSplits - 1) / kBlockSplits;
    for (int round = 0; round < blocks; round += kSlots) {
      const int count = min(kSlots, blocks - round);
      for (int slot = warp; slot < count; slot += kThreads / kWarp) {
        float sum[16] = {};
        const int begin_split = (round + slot) * kBlockSplits;
#pragma unroll
        for (int i = 0; i < kBlockSplits; ++i) {
          const int s = begin_split + i;
          if (s < splits) {
            const float weight =
                exp2f(p.log_sums[first + s] - shared.tops[row]) * shared.weights[row];
            add_split(p, first + s, weight, lane, sum);
          }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int k = 0; k < 8; ++k) {
            shared.blocks[slot][(i * kWarp + lane) * 8 + k] = sum[8 * i + k];
          }
        }
      }
      __syncthreads();
      for (int slot = 0; slot < count; ++slot) {
        const float2 sum = reinterpret_cast<const float2*>(shared.blocks[slot])[threadIdx.x];
        total[0] += sum.x, total[1] += sum.y;
      }
      __syncthreads();
    }
    const uint32_t pair = pack(total[0], total[1], typename Up::Value());
    shared.input[row][Up::place(2 * threadIdx.x)] = uint16_t(pair);
    shared.input[row][Up::place(2 * threadIdx.x + 1)] = uint16_t(pair >> 16);
  }
  __syncthreads();
}

// Blocks: x = head and slabs of outputs, y = rows.
template <KvFormat format, typename Out>
__global__ void __launch_bounds__(kThreads)
    join_kernel(Partials p, LatentUp w, OutputBlocks b, StepView step, Matrix<Out> out) {
  using Up = UpRows<format>;
  using Value = typename Up::Value;
  constexpr int kSlabs = kValue / kOutputs, kChunks = kLatent / 64 / 2;  // chunks of a slice
  __shared__ JoinShared shared;
  const int blocks_a_head = kSlabs / b.slabs;
  const int head = blockIdx.x / blocks_a_head, first_slab = blockIdx.x % blocks_a_head * b.slabs;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int tile = threadIdx.x / kWarp % 4, slice = threadIdx.x / kWarp / 4;
  const int begin = blockIdx.y * kRows;
  typename Up::Along raw[kChunks][2];
  const auto fetch = [&](int slab) {
    const int64_t row = int64_t(head) * kUpRows + kNope + slab * kOutputs + tile * 16 + g;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      raw[c][0] = Up::load_along(w, row, slice * kChunks + c, t);
      raw[c][1] = Up::load_along(w, row + 8, slice * kChunks + c, t);
    }
  };
  fetch(first_slab);
  wait_for_predecessor();
  let_successor_begin();
  join_rows<Up>(p, b, step, head, begin, shared);
  for (int slab = first_slab; slab < first_slab + b.slabs; ++slab) {
    float acc[4] = {};
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      uint32_t low[4][2], high[4][2], x[8];
      Up::decode(raw[c][0], low);
      Up::decode(raw[c][1], high);
      const uint16_t* from = &shared.input[g][(slice * kChunks + c) * 64 + 16 * t];
      *reinterpret_cast<uint4*>(x) = *reinterpret_cast<const uint4*>(from);
      *reinterpret_cast<uint4*>(x + 4) = *reinterpret_cast<const uint4*>(from + 8);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t a[4] = {low[j][0], high[j][0], low[j][1], high[j][1]};
        const uint32_t factor[2] = {x[2 * j], x[2 * j + 1]};
        multiply(acc, a, factor, Value());
      }
    }
    if (slab + 1 < first_slab + b.slabs) fetch(slab + 1);
    if (slice == 1)
      *reinterpret_cast<float4*>(shared.slices[tile][lane]) =
          make_float4(acc[0], acc[1], acc[2], acc[3]);
    __syncthreads();
    if (slice == 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = begin + 2 * t + i % 2;
        const int n = slab * kOutputs + tile * 16 + g + i / 2 * 8;
        if (row >= b.num_rows) continue;
        const float scale =
            w.scale * Up::kScale * Up::row_scale(w, int64_t(head) * kUpRows + kNope + n);
        out.row(b.first_row + row)[head * kValue + n] =
            from_float<Out>((acc[i] + shared.slices[tile][lane][i]) * scale);
      }
    }
    __syncthreads();
  }
}

template <typename Run>
void with_format(KvFormat format, Run&& run) {
  if (format == KvFormat::kNvfp4) return run(std::integral_constant<KvFormat, KvFormat::kNvfp4>());
  run(std::integral_constant<KvFormat, KvFormat::kBF16>());
}

}  // namespace

void absorb_queries(const Context& context, Tensor q, const LatentUp& kv_b, const MlaShape& shape,
                    RowRange rows, LatentQueries out) {
  const bool is_bf16 = out.format == KvFormat::kBF16 || out.format == KvFormat::kF32;
  const int tiles = rows.count > 64 ? 4 : 1;
  const QueryBlocks blocks{
      .heads = shape.heads,
      .first_row = rows.first,
      .num_rows = rows.count,
      .tiles = tiles,
      .scale = float(std::numbers::log2e / std::sqrt(double(shape.query_dim()))),
      .permuted = out.format == KvFormat::kNvfp4};
  const Grid grid{
      .blocks = {unsigned(shape.heads * kColumnBlocks + 1), blocks_for(rows.count, tiles * kRows)},
      .threads = kThreads};
  const Rope rope = rope_of(shape.rope_dim, shape.rope_theta);
  with_format(kv_b.format, [&](auto format) {
    with_activation(q.dtype, [&]<typename In>(In) {
      if (is_bf16) {
        launch(context, grid, absorb_kernel<format(), In, bf16>, Matrix<In>(q), kv_b, blocks, rope,
               context.step, static_cast<bf16*>(out.data));
      } else {
        launch(context, grid, absorb_kernel<format(), In, __half>, Matrix<In>(q), kv_b, blocks,
               rope, context.step, static_cast<__half*>(out.data));
      }
    });
  });
}

void join_splits(const Context& context, Partials partials, const LatentUp& kv_b,
                 const MlaShape& shape, RowRange rows, Tensor out) {
  // Few rows: more blocks, each of which joins the splits again.
  const int slabs = rows.count > 16 ? 4 : 1;
  const OutputBlocks blocks{
      .heads = shape.heads, .first_row = rows.first, .num_rows = rows.count, .slabs = slabs};
  const Grid grid{.blocks = {unsigned(shape.heads * (kValue / kOutputs / slabs)),
                             blocks_for(rows.count, kRows)},
                  .threads = kThreads};
  with_format(kv_b.format, [&](auto format) {
    with_activation(out.dtype, [&]<typename Out>(Out) {
      launch(context, grid, join_kernel<format(), Out>, partials, kv_b, blocks, context.step,
             Matrix<Out>(out));
    });
  });
}

}  // namespace nibble::cuda
