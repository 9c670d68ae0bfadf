// join_splits: a row's splits become averages, and these pass through kv_b's value half, straight
// from its own format
//
//   out[h][n] = sum_c o[h][c] kv_b[h][192 + n][c]     K = 512, along kv_b's rows
//
// On an H100 behind 1k: one row with absorbing and splits 9.1 us, 64 rows in a step 12; its 1.5 MB
// of kv_b take 0.5.
//
// kv_b is the A factor, 8 rows of the batch are B's columns, so that one row and many take the same
// products in the same order. A block of 8 warps: 64 outputs of a head in 2 slices of K, by up to
// 32 rows; slices are added in order. kv_b is fetched before the predecessor has ended.
//
// A row's average over all splits is the sum over blocks of kBlockSplits splits, in order,
// each the weighted sum of its splits. Few rows are joined by the blocks that need them, where a
// warp makes a block; many once, by average_kernel.
#include "backend/cuda/bulk.cuh"
#include "backend/cuda/dtypes.h"
#include "backend/cuda/mla_stages.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 8;    // of the batch, at once
constexpr int kSlots = 16;  // block sums kept at once
constexpr int kOutputs = 64, kInputPitch = kLatent + 8;
constexpr int kChunks = kLatent / 64 / 2;  // of a slice
constexpr int kFewRows = 2;
constexpr int kMostSplitsAlone = 32;  // a cluster's start takes longer than joining these again
constexpr int kMostTiles = 4;         // of kRows rows, a block

struct JoinShared {
  float blocks[kSlots][kLatent];
};

struct OutputBlocks {
  int heads = 0, first_row = 0, num_rows = 0, tiles = 1;  // tiles of kRows a block
};

// Before what comes next, where the compiler would load it in a branch that needs it.
__device__ __forceinline__ void fetch_now(uint4& v) {
  compute_now(v.x), compute_now(v.y), compute_now(v.z), compute_now(v.w);
}

// Of four columns.
__device__ __forceinline__ void add_split(uint2 v, float weight, float (&sum)[4]) {
  const float2 low = unpack(v.x, __half()), high = unpack(v.y, __half());
  sum[0] = fmaf(weight, low.x, sum[0]), sum[1] = fmaf(weight, low.y, sum[1]);
  sum[2] = fmaf(weight, high.x, sum[2]), sum[3] = fmaf(weight, high.y, sum[3]);
}

// What each of a row's splits counts in its average, by a warp: a lane holds every kWarp-th.
template <int kHeld>
struct SplitShares {
  float held[kHeld];  // log sums, then shares

  __device__ __forceinline__ SplitShares(const float* logs, int splits) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int s = k * kWarp + threadIdx.x % kWarp;
      held[k] = s < splits ? logs[s] : -INFINITY;
    }
  }
  // Once what else is wanted from memory is on its way.
  __device__ __forceinline__ void weigh(int splits) {
    float top = held[0], all = 0;
#pragma unroll
    for (int k = 1; k < kHeld; ++k) top = fmaxf(top, held[k]);
    top = warp_max(top);
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const bool is_split = k * kWarp + int(threadIdx.x) % kWarp < splits;
      all += held[k] = is_split ? power_of_two(held[k] - top) : 0;
    }
    const float weight = 1.0f / warp_sum(all);
#pragma unroll
    for (int k = 0; k < kHeld; ++k) held[k] *= weight;
  }
  // By the whole warp, of the same split.
  __device__ __forceinline__ float of(int split) const {
    float share = held[0];
#pragma unroll
    for (int k = 1; k < kHeld; ++k) share = split >= k * kWarp ? held[k] : share;
    return __shfl_sync(0xffffffffu, share, split % kWarp);
  }
};

// Splits that are joined without a cluster, at most.
#if __CUDA_ARCH__ >= 900
constexpr int kMostJoined = kMostSplitsAlone;
#else
constexpr int kMostJoined = kMostSplits;
#endif

// The average of columns 2 threadIdx.x and the next, of the `splits` from `first` on. What is read
// of a block of kBlockSplits beyond them is not used.
__device__ float2 join_row(const Partials& p, unsigned first, int splits, JoinShared& shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int blocks = (splits + kBlockSplits - 1) / kBlockSplits;
  float2 total = make_float2(0, 0);
  constexpr bool kOnce = kMostJoined <= kThreads / kWarp * kBlockSplits;  // a block a warp
  for (int round = 0; round < (kOnce ? 1 : blocks); round += kSlots) {
    if (round > 0) __syncthreads();
    const int count = min(kSlots, blocks - round);
    for (int slot = warp; slot < count; slot += kOnce ? kSlots : kThreads / kWarp) {
      const int own = (round + slot) * kBlockSplits;
      SplitShares<kMostJoined / kWarp> shares(p.log_sums + first, splits);
      const auto* at =
          reinterpret_cast<const uint4*>(p.values + size_t(first + own) * kLatent) + lane;
      uint4 raw[kBlockSplits][2];
#pragma unroll
      for (int i = 0; i < kBlockSplits; ++i) {
        raw[i][0] = at[i * (kLatent / 8)], raw[i][1] = at[i * (kLatent / 8) + kWarp];
      }
#pragma unroll
      for (int i = 0; i < kBlockSplits; ++i) fetch_now(raw[i][0]), fetch_now(raw[i][1]);
      shares.weigh(splits);
      float sum[4][4] = {};
#pragma unroll
      for (int i = 0; i < kBlockSplits; ++i) {
        if (own + i >= splits) break;
        const float share = shares.of(own + i);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          add_split(make_uint2(raw[i][k].x, raw[i][k].y), share, sum[2 * k]);
          add_split(make_uint2(raw[i][k].z, raw[i][k].w), share, sum[2 * k + 1]);
        }
      }
      float4* to = reinterpret_cast<float4*>(shared.blocks[slot]);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        to[(k / 2 * kWarp + lane) * 2 + k % 2] =
            make_float4(sum[k][0], sum[k][1], sum[k][2], sum[k][3]);
      }
    }
    __syncthreads();
    for (int slot = 0; slot < count; ++slot) {
      const float2 sum = reinterpret_cast<const float2*>(shared.blocks[slot])[threadIdx.x];
      total.x += sum.x, total.y += sum.y;
    }
  }
  return total;
}

// Of the blocks that need a row's average, each joins a part of its columns, for all of them.
constexpr int kJoiners = kValue / kOutputs, kPartColumns = kLatent / kJoiners;
constexpr int kPartPairs = kPartColumns / 2;
constexpr int kPartSlots = kMostSplits / kBlockSplits;
static_assert(kPartColumns == 4 * kWarp && kThreads == kJoiners * kPartPairs);

struct PartShared {
  float blocks[kPartSlots][kPartColumns];
};

// The average of columns 2 (threadIdx.x % kPartPairs) and the next of the part: as join_row(), with
// all splits on their way at once.
__device__ float2 join_part(const Partials& p, unsigned first, int splits, int part,
                            PartShared& shared) {
  constexpr int kWarps = kThreads / kWarp, kOwn = kPartSlots / kWarps;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int blocks = (splits + kBlockSplits - 1) / kBlockSplits;
  // Those of a block are in one part of the shares, held by neighbouring lanes.
  using Shares = SplitShares<kOwn>;
  static_assert(kWarps * kBlockSplits == kWarp);
  Shares shares(p.log_sums + first, splits);
  const auto* at =
      reinterpret_cast<const uint2*>(p.values + size_t(first + warp * kBlockSplits) * kLatent +
                                     part * kPartColumns) +
      lane;
  uint2 raw[kOwn][kBlockSplits];
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    if (k * kWarps + warp >= blocks) break;
#pragma unroll
    for (int i = 0; i < kBlockSplits; ++i) {
      raw[k][i] = at[(k * kWarps * kBlockSplits + i) * (kLatent / 4)];
      compute_now(raw[k][i].x), compute_now(raw[k][i].y);
    }
  }
  shares.weigh(splits);
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    const int slot = k * kWarps + warp;
    if (slot >= blocks) break;
    float sum[4] = {};
#pragma unroll
    for (int i = 0; i < kBlockSplits; ++i) {
      if (slot * kBlockSplits + i >= splits) break;
      add_split(raw[k][i], __shfl_sync(0xffffffffu, shares.held[k], warp * kBlockSplits + i), sum);
    }
    reinterpret_cast<float4*>(shared.blocks[slot])[lane] =
        make_float4(sum[0], sum[1], sum[2], sum[3]);
  }
  __syncthreads();
  float2 total = make_float2(0, 0);
  for (int slot = 0; slot < blocks; ++slot) {
    const float2 sum =
        reinterpret_cast<const float2*>(shared.blocks[slot])[threadIdx.x % kPartPairs];
    total.x += sum.x, total.y += sum.y;
  }
  return total;
}

// Two columns of an average, in the order that kv_b's values have.
template <KvFormat format>
__device__ __forceinline__ void store_average(float2 average, int pair, uint16_t* to) {
  using Up = UpRows<format>;
  const uint32_t packed = pack(average.x, average.y, typename Up::Value());
  to[Up::place(2 * pair)] = uint16_t(packed);
  to[Up::place(2 * pair + 1)] = uint16_t(packed >> 16);
}

// By all threads of a block that will share `rows` averages; then they arrive at the cluster.
__device__ __forceinline__ void begin_sharing(uint64_t* joined, int rows) {
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x == 0) {
    start_barrier(joined, 1);
    publish_barriers();
    arrive_expecting(joined, rows * kLatent * int(sizeof(uint16_t)));
  }
#endif
  arrive_at_cluster();
}

// The same in block `rank` of the cluster, by whole warps of neighbouring pairs.
template <KvFormat format>
__device__ __forceinline__ void share_average(float2 average, int pair, unsigned rank, uint16_t* to,
                                              uint64_t* joined) {
#if __CUDA_ARCH__ >= 900
  using Up = UpRows<format>;
  uint32_t word = pack(average.x, average.y, typename Up::Value());
  int place = 2 * pair;
  if constexpr (format == KvFormat::kNvfp4) {
    // Columns i and i + 4 lie together: threads of pairs two apart exchange one.
    const bool is_high = pair & 2;
    const uint32_t other = __shfl_xor_sync(0xffffffffu, word, 2);
    word = is_high ? __byte_perm(other, word, 0x7632) : __byte_perm(word, other, 0x5410);
    place = Up::place(is_high ? 2 * pair - 3 : 2 * pair);
  }
  send_to_block(reinterpret_cast<uint32_t*>(to + place), joined, rank, word);
#endif
}

// Four columns a thread. Blocks: x = head, y = row.
constexpr int kAverageThreads = kLatent / 4;
constexpr int kAtOnce = 5 * kBlockSplits;  // loads of a thread under way
static_assert(kAtOnce <= kWarp);

template <KvFormat format>
__global__ void __launch_bounds__(kAverageThreads)
    average_kernel(Partials p, OutputBlocks b, StepView step, uint16_t* out) {
  using Up = UpRows<format>;
  let_successor_begin();
  const int lane = threadIdx.x % kWarp;
  const int splits = splits_of(step.positions[b.first_row + blockIdx.y] + 1);
  const int64_t index = int64_t(blockIdx.y) * b.heads + blockIdx.x;
  wait_for_predecessor();
  const float* logs = p.log_sums + index * p.max_splits;
  const auto* values =
      reinterpret_cast<const uint2*>(p.values + index * p.max_splits * kLatent) + threadIdx.x;
  uint2 raw[kAtOnce];
  const auto load = [&](int round) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (round + i < splits) raw[i] = values[int64_t(round + i) * (kLatent / 4)];
    }
  };
  load(0);
  float top = -INFINITY, all = 0;
  for (int s = lane; s < splits; s += kWarp) top = fmaxf(top, logs[s]);
  top = warp_max(top);
  for (int s = lane; s < splits; s += kWarp) all += power_of_two(logs[s] - top);
  const float weight = 1.0f / warp_sum(all);
  float total[4] = {};
  for (int round = 0; round < splits; round += kAtOnce) {
    if (round > 0) load(round);
    const float share = power_of_two(logs[min(round + lane, splits - 1)] - top) * weight;
#pragma unroll
    for (int first = 0; first < kAtOnce; first += kBlockSplits) {
      if (round + first >= splits) break;
      float sum[4] = {};
#pragma unroll
      for (int i = first; i < first + kBlockSplits; ++i) {
        const float own = __shfl_sync(0xffffffffu, share, i);
        if (round + i < splits) add_split(raw[i], own, sum);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) total[i] += sum[i];
    }
  }
  uint2 four = make_uint2(pack(total[0], total[1], typename Up::Value()),
                          pack(total[2], total[3], typename Up::Value()));
  if constexpr (format == KvFormat::kNvfp4) {
    // In the order of place_in_8(): of eight columns, neighbours exchange two.
    const bool is_high = threadIdx.x & 1;
    const uint32_t other = __shfl_xor_sync(0xffffffffu, is_high ? four.x : four.y, 1);
    const uint32_t low = is_high ? other : four.x, high = is_high ? four.y : other;
    four = make_uint2(__byte_perm(low, high, 0x5410), __byte_perm(low, high, 0x7632));
  }
  reinterpret_cast<uint2*>(out + index * kLatent)[threadIdx.x] = four;
}

// The chunks of kv_b that a warp multiplies by: of 16 outputs, a slice of K.
template <KvFormat format>
struct OutputFactor {
  using Up = UpRows<format>;
  using Value = typename Up::Value;
  uint32_t low[kChunks][4][2], high[kChunks][4][2];

  __device__ __forceinline__ void make(const LatentUp& w, int64_t row, int slice, int t) {
    typename Up::Along raw[kChunks][2];
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      raw[c][0] = Up::load_along(w, row, slice * kChunks + c, t);
      raw[c][1] = Up::load_along(w, row + 8, slice * kChunks + c, t);
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      Up::decode(raw[c][0], low[c]);
      Up::decode(raw[c][1], high[c]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) compute_now(low[c][j][i]), compute_now(high[c][j][i]);
      }
    }
  }

  // Of `tiles` tiles of rows; input: rows of kInputPitch.
  template <int tiles>
  __device__ __forceinline__ void multiply_rows(const uint16_t* input, int used, int slice,
                                                float (&sums)[tiles][4]) const {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
    float pairs[2][tiles][4];  // of chunks: the first two, the last two
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int n = 0; n < tiles; ++n) {
        if (n >= used) break;
        const uint16_t* from =
            input + (n * kRows + g) * kInputPitch + (slice * kChunks + c) * 64 + 16 * t;
        uint32_t x[8];
        *reinterpret_cast<uint4*>(x) = *reinterpret_cast<const uint4*>(from);
        *reinterpret_cast<uint4*>(x + 4) = *reinterpret_cast<const uint4*>(from + 8);
        float acc[4] = {};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t a[4] = {low[c][j][0], high[c][j][0], low[c][j][1], high[c][j][1]};
          const uint32_t factor[2] = {x[2 * j], x[2 * j + 1]};
          multiply(acc, a, factor, Value());
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          pairs[c / 2][n][i] = c % 2 == 0 ? acc[i] : pairs[c / 2][n][i] + acc[i];
        }
      }
    }
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] = n < used ? pairs[0][n][i] + pairs[1][n][i] : 0.0f;
    }
  }
};

// What a block shares beside its inputs: many rows have their averages.
template <int tiles>
struct OutputShared {
  float slices[tiles][4][kWarp][4];
};
template <>
struct OutputShared<1> {
  union {
    JoinShared join;
    PartShared part;
    float slices[1][4][kWarp][4];
  };
};

// Blocks of join_kernel that leave each other registers: on sm_90 also of one tile, so that the
// next kernel's blocks have room beside one.
template <int tiles>
constexpr int join_blocks() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
  return tiles == 1 ? 1 : 2;
#else
  return 2;
#endif
}

// Blocks: x = head and kOutputs outputs, y = rows. `averages`: where they are joined already, as
// for several tiles. kShares: the blocks of a head are a cluster, which joins a row once.
template <KvFormat format, typename Out, int tiles, bool kShares>
__global__ void __launch_bounds__(kThreads, join_blocks<tiles>())
    join_kernel(Partials p, const uint16_t* averages, LatentUp w, OutputBlocks b, StepView step,
                Matrix<Out> out) {
  using Up = UpRows<format>;
  constexpr int kSlabs = kValue / kOutputs;
  __shared__ OutputShared<tiles> shared;
  __shared__ __align__(16) uint16_t input[tiles * kRows][kInputPitch];
  __shared__ uint64_t joined;  // a barrier: the cluster's averages have come
  let_successor_begin();
  const int head = blockIdx.x / kSlabs, slab = blockIdx.x % kSlabs;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int tile = threadIdx.x / kWarp % 4, slice = threadIdx.x / kWarp / 4;
  const int begin = blockIdx.y * tiles * kRows, rows = min(tiles * kRows, b.num_rows - begin);
  const int64_t first = int64_t(head) * kUpRows + kNope + slab * kOutputs + tile * 16 + g;
  OutputFactor<format> factor;
  if constexpr (format == KvFormat::kNvfp4) factor.make(w, first, slice, t);
  const int cleared = rows * kInputPitch / 8;  // the others are written as a whole
  for (int i = cleared + threadIdx.x; i < tiles * kRows * kInputPitch / 8; i += kThreads) {
    reinterpret_cast<uint4*>(input)[i] = make_uint4(0, 0, 0, 0);
  }
  const auto splits_of_row = [&](int row) {
    return splits_of(step.positions[b.first_row + begin + row] + 1);
  };
  const int first_splits = splits_of_row(0);
  unsigned first_partial = unsigned(begin * b.heads + head) * p.max_splits;
  const unsigned row_partials = unsigned(b.heads) * p.max_splits;
  compute_now(first_partial);
  if (first_splits < 1) return;  // never, but so it is known before the wait
  if constexpr (kShares) begin_sharing(&joined, rows);
  wait_for_predecessor();
  if constexpr (kShares) {
    wait_for_cluster();  // they have begun
    const int pair = slab * kPartPairs + int(threadIdx.x) % kPartPairs;
    for (int row = 0; row < rows; ++row) {
      if (row > 0) __syncthreads();
      const int splits = row == 0 ? first_splits : splits_of_row(row);
      const float2 average =
          join_part(p, first_partial + row * row_partials, splits, slab, shared.part);
      share_average<format>(average, pair, threadIdx.x / kPartPairs, input[row], &joined);
    }
  } else if (tiles == 1 && averages == nullptr) {
    if constexpr (tiles == 1) {
      for (int row = 0; row < rows; ++row) {
        if (row > 0) __syncthreads();
        const int splits = row == 0 ? first_splits : splits_of_row(row);
        const float2 average = join_row(p, first_partial + row * row_partials, splits, shared.join);
        store_average<format>(average, threadIdx.x, input[row]);
      }
    }
  } else {
    for (int i = threadIdx.x; i < rows * (kLatent / 8); i += kThreads) {
      const int row = i / (kLatent / 8), piece = i % (kLatent / 8);
      reinterpret_cast<uint4*>(input[row])[piece] = reinterpret_cast<const uint4*>(
          averages + (int64_t(begin + row) * b.heads + head) * kLatent)[piece];
    }
  }
  if constexpr (format != KvFormat::kNvfp4) factor.make(w, first, slice, t);  // too wide to hold
  if constexpr (kShares) wait_for_phase(&joined, 0);
  __syncthreads();
  float sums[tiles][4];
  const int used = (rows + kRows - 1) / kRows;
  factor.template multiply_rows<tiles>(input[0], used, slice, sums);
  if (slice == 1) {
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
      *reinterpret_cast<float4*>(shared.slices[n][tile][lane]) =
          make_float4(sums[n][0], sums[n][1], sums[n][2], sums[n][3]);
    }
  }
  __syncthreads();
  if (slice == 1) return;
  const float scale = w.scale * Up::kScale;
  const float scales[2] = {scale * Up::row_scale(w, first), scale * Up::row_scale(w, first + 8)};
#pragma unroll
  for (int n = 0; n < tiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = n * kRows + 2 * t + i % 2;
      if (row >= rows) continue;
      out.row(b.first_row + begin +
              row)[head * kValue + slab * kOutputs + tile * 16 + g + i / 2 * 8] =
          from_float<Out>((sums[n][i] + shared.slices[n][tile][lane][i]) * scales[i / 2]);
    }
  }
}

}  // namespace

void join_splits(const Context& context, Partials partials, const LatentUp& kv_b,
                 const MlaShape& shape, RowRange rows, void* averages, Tensor out) {
  // Few rows: every block that needs one joins its splits again.
  const bool few = rows.count <= kFewRows;
  const int tiles = rows.count > 2 * kRows ? kMostTiles : 1;
  const OutputBlocks blocks{
      .heads = shape.heads, .first_row = rows.first, .num_rows = rows.count, .tiles = tiles};
  const bool shares =
      few && partials.max_splits > kMostSplitsAlone && context.device.has_clusters();
  const Grid grid{
      .blocks = {unsigned(shape.heads * kJoiners), blocks_for(rows.count, tiles * kRows)},
      .threads = kThreads,
      .cluster = shares ? unsigned(kJoiners) : 1};
  uint16_t* const joined = few ? nullptr : static_cast<uint16_t*>(averages);
  with_up_format(kv_b.format, [&](auto format) {
    if (!few) {
      launch(context,
             {.blocks = {unsigned(shape.heads), unsigned(rows.count)}, .threads = kAverageThreads},
             average_kernel<format()>, partials, blocks, context.step, joined);
    }
    with_activation(out.dtype, [&]<typename Out>(Out) {
      const auto kernel = shares       ? join_kernel<format(), Out, 1, true>
                          : tiles == 1 ? join_kernel<format(), Out, 1, false>
                                       : join_kernel<format(), Out, kMostTiles, false>;
      launch(context, grid, kernel, partials, joined, kv_b, blocks, context.step, Matrix<Out>(out));
    });
  });
}

}  // namespace nibble::cuda
