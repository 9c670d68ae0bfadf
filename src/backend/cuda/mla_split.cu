// attend_splits: for one row, a group of heads and a span of positions
//
//   s[p][h] = record[p] . q'[h]          p[p][h] = 2^(s - top)          o[h] = sum_p p[p][h]
//   latent[p]
//
// with records as they are stored. Positions are the 16 rows of a product and heads its columns, 8
// at a time: 20 heads fill 24, where heads as rows would fill 32. A block walks tiles of positions
// that cp.async brings kStages - 1 ahead: scores (a warp takes 16 positions and a slice of the
// record), softmax (a warp takes heads), outputs (a warp takes 64 columns of the latent). Two
// blocks share an SM, so that one computes while the other waits. Where there are more spans than
// blocks that the card holds, a block takes several of its row, and goes from one into the next
// without a pause.
//
// Records of earlier steps are fetched before the predecessor has ended.
//
// H100, 20 heads, INT8: 64 rows x 1k take 36 us, where reading the records takes 13; 8 rows x 32k
// with kv_b's products 126 us, 39 % of 3.1 TB/s (BF16 58 %, FP8 34 %, NVFP4 23 %). Bound by the
// chain of unpacking, products and barriers in a tile, of which two blocks overlap.
#include "backend/cuda/mla_stages.h"
#include "backend/cuda/mla_tile.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kQueryPitch = kRecord + 8;  // 16-bit values

// The tiles of every step-th split of a row, from `split` on.
template <int kTile>
struct SplitTiles {
  int length, span, split, step;
  int count;

  __device__ __forceinline__ SplitTiles(int length, int split, int step)
      : length(length), span(split_span(length)), split(split), step(step) {
    const int splits = (length + span - 1) / span, own = (splits - split + step - 1) / step;
    const int last = split + (own - 1) * step;
    count = (own - 1) * (span / kTile) + (min(span, length - last * span) + kTile - 1) / kTile;
  }
  __device__ __forceinline__ int split_of(int tile) const {
    return split + tile / (span / kTile) * step;
  }
  __device__ __forceinline__ int first_of(int tile) const {
    return split_of(tile) * span + tile % (span / kTile) * kTile;
  }
  __device__ __forceinline__ int end_of(int split) const { return min((split + 1) * span, length); }
  __device__ __forceinline__ int length_of(int split) const { return end_of(split) - split * span; }
};

template <KvFormat format, int kHeadTiles, int kTile, int kStages>
struct Kernel {
  using T = RecordTile<format>;
  using Value = typename T::Value;
  static constexpr int kHeads = 8 * kHeadTiles;
  static constexpr int kRowTiles = kTile / 16, kSlices = kWarps / kRowTiles;
  static constexpr int kScorePitch = kTile + 4;

  static constexpr int kBatch = kThreads / kTile;  // tiles whose records are located at once

  struct Where {      // of a record
    uint32_t values;  // in 16 bytes from the cache's start
    uint32_t scales;  // in 2 bytes from there; then themselves: BF16 of latent and rope key
  };

  // What only finding records and storing outputs take.
  struct Row {
    SplitTiles<kTile> tiles;
    const int32_t* pages;
    int heads;
    uint32_t first_partial;  // of the block's heads

    __device__ __forceinline__ int position(int tile, int own) const {
      return min(tiles.first_of(tile) + own, tiles.end_of(tiles.split_of(tile)) - 1);
    }
  };

  struct Shared {
    alignas(16) uint8_t tiles[kStages][kTile * T::kBytes];
    // Of a head in the last slice, the scores give way to its probabilities.
    alignas(16) float scores[kSlices][kHeads][kScorePitch];
    float factors[kHeads];   // of the outputs so far
    float averages[kHeads];  // the factor that makes outputs averages
    Where where[2 * kBatch][kTile];
    Row row;
    alignas(16) uint16_t queries[];  // [heads, kQueryPitch]
  };

  __device__ static uint16_t* probabilities_of(Shared& s, int head) {
    return reinterpret_cast<uint16_t*>(s.scores[kSlices - 1][head]);
  }

  __device__ static Where place_of(const Records& records, int32_t page, int slot) {
    const uint32_t at = uint32_t(page) * records.page_units;
    return {.values = at + slot * records.value_units,
            .scales = T::kHasScales ? (at + records.page_size * records.value_units) * 8 +
                                          slot * (records.scale_bytes / 2)
                                    : 0};
  }
  __device__ static uint32_t scales_at(const Records& records, const Where& where) {
    const uint8_t* at = records.data + uint64_t(where.scales) * 2;
    return T::kScalesLatent ? *reinterpret_cast<const uint32_t*>(at)
                            : uint32_t(*reinterpret_cast<const uint16_t*>(at)) << 16;
  }

  __device__ static void load_queries(const uint16_t* from, int heads, uint16_t* to) {
    constexpr int kPieces = kRecord / 8;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const auto* source = reinterpret_cast<const uint4*>(from) + warp * kPieces;
    auto* target = reinterpret_cast<uint4*>(to) + warp * (kQueryPitch / 8);
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      if (n * kWarps + warp >= heads) break;
#pragma unroll
      for (int piece = 0; piece < kPieces; piece += kWarp) {
        if (piece + kWarp > kPieces && piece + lane >= kPieces) break;
        target[n * kWarps * (kQueryPitch / 8) + piece + lane] =
            source[n * kWarps * kPieces + piece + lane];
      }
    }
  }

  // A warp copies every kWarps-th row, a lane a piece of it; what a row has beyond whole warps of
  // pieces is copied by all threads together.
  __device__ static void copy(const Records& records, const Where* where, uint8_t* tile) {
    constexpr int kPieces = T::kBytes / 16, kWhole = kPieces < kWarp ? 1 : kPieces / kWarp;
    constexpr int kRest = kPieces < kWarp ? 0 : kPieces % kWarp;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const uint8_t* from = records.data + 16 * lane;
    // Places are read before the copies of a group: the compiler moves none past them.
    constexpr int kGroup = kWhole > 1 ? 1 : kTile / kWarps;
    if (kPieces >= kWarp || lane < kPieces) {
#pragma unroll 1
      for (int first = 0; first < kTile / kWarps; first += kGroup) {
        uint32_t at[kGroup];
#pragma unroll
        for (int i = 0; i < kGroup; ++i) at[i] = where[(first + i) * kWarps + warp].values;
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          const int row = (first + i) * kWarps + warp;
#pragma unroll
          for (int k = 0; k < kWhole; ++k) {
            const int piece = (k * kWarp + lane) ^ T::swizzle(warp);  // kWarps rows: the same
            copy_async_16(tile + row * T::kBytes + piece * 16,
                          from + uint64_t(at[i]) * 16 + k * (kWarp * 16));
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < (kTile * kRest + kThreads - 1) / kThreads; ++i) {
      constexpr int kWide = std::max(kRest, 1);
      const int index = i * kThreads + threadIdx.x, row = index / kWide;
      if (kTile * kRest % kThreads != 0 && row >= kTile) break;
      const int piece = kWhole * kWarp + index % kWide;
      copy_async_16(tile + row * T::kBytes + (piece ^ T::swizzle(row)) * 16,
                    records.data + (uint64_t(where[row].values) + uint32_t(piece)) * 16);
    }
  }

  __device__ static float2 scales_of(const Where& where) {
    const float2 both = unpack(where.scales, bf16());
    return T::kScalesLatent ? both : make_float2(T::kLatentScale, both.y);
  }

  // `count`: of positions that are not masked.
  __device__ static void score(Shared& s, const uint8_t* tile, const Where* where, int count,
                               int heads) {
    const int warp = threadIdx.x / kWarp, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
    const int first = warp % kRowTiles * 16, slice = warp / kRowTiles;
    if (first >= count) return;
    float acc[kHeadTiles][4] = {};
    const uint16_t* query[kHeadTiles];
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      query[n] = s.queries + min(n * 8 + g, heads - 1) * kQueryPitch + 16 * t;
    }
    if (slice < 4) {
#pragma unroll
      for (int j = slice; j < 4; j += kSlices) {
        uint32_t low[2], high[2];
        T::rope(tile, first + g, j, t, low);
        T::rope(tile, first + g + 8, j, t, high);
        const uint32_t a[4] = {low[0], high[0], low[1], high[1]};
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
          const uint2 x = *reinterpret_cast<const uint2*>(query[n] + kLatent + 4 * j);
          multiply(acc[n], a, {x.x, x.y}, Value());
        }
      }
    }
    // Rope keys with a scale of their own are brought to the latent's.
    float low_scale = T::kLatentScale, high_scale = low_scale;
    if (T::kHasScales) {
      const float2 low = scales_of(where[first + g]), high = scales_of(where[first + g + 8]);
      low_scale = low.x, high_scale = high.x;
      const float low_ratio = low.x == 0 ? 0 : __fdividef(low.y, low.x);
      const float high_ratio = high.x == 0 ? 0 : __fdividef(high.y, high.x);
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
        acc[n][0] *= low_ratio, acc[n][1] *= low_ratio;
        acc[n][2] *= high_ratio, acc[n][3] *= high_ratio;
      }
    }
#pragma unroll
    for (int c = 0; c < kLatent / 64 / kSlices; ++c) {
      const int chunk = slice * (kLatent / 64 / kSlices) + c;
      uint32_t low[4][2], high[4][2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        T::along(tile, first + g, chunk, t, half, low);
        T::along(tile, first + g + 8, chunk, t, half, high);
        uint4 x[kHeadTiles];
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
          x[n] = *reinterpret_cast<const uint4*>(query[n] + 64 * chunk + 8 * half);
        }
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int j = 2 * half + k;
          const uint32_t a[4] = {low[j][0], high[j][0], low[j][1], high[j][1]};
#pragma unroll
          for (int n = 0; n < kHeadTiles; ++n) {
            multiply(acc[n], a, {k == 0 ? x[n].x : x[n].z, k == 0 ? x[n].y : x[n].w}, Value());
          }
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s.scores[slice][n * 8 + 2 * t + i % 2][first + g + i / 2 * 8] =
            acc[n][i] * (i < 2 ? low_scale : high_scale);
      }
    }
  }

  // Warp w has heads w * kHeadTiles ...; tops and sums are theirs.
  __device__ static void weigh(Shared& s, const Where* where, int count, float (&tops)[kHeadTiles],
                               float (&sums)[kHeadTiles]) {
    constexpr int kEach = kTile > kWarp ? kTile / kWarp : 1;  // positions of a lane
    const int lane = threadIdx.x % kWarp, first_head = threadIdx.x / kWarp * kHeadTiles;
    float value[kHeadTiles][kEach], top[kHeadTiles], sum[kHeadTiles], factor[kHeadTiles];
#pragma unroll
    for (int i = 0; i < kHeadTiles; ++i) {
      top[i] = tops[i];
#pragma unroll
      for (int k = 0; k < kEach; ++k) {
        const int row = k * kWarp + lane;
        value[i][k] = 0;
#pragma unroll
        for (int slice = 0; slice < kSlices; ++slice) {
          value[i][k] += s.scores[slice][first_head + i][row % kTile];
        }
        if (row >= kTile || row >= count) value[i][k] = -INFINITY;
        top[i] = fmaxf(top[i], value[i][k]);
      }
    }
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
#pragma unroll
      for (int i = 0; i < kHeadTiles; ++i) {
        top[i] = fmaxf(top[i], __shfl_xor_sync(0xffffffffu, top[i], offset));
      }
    }
#pragma unroll
    for (int i = 0; i < kHeadTiles; ++i) {
      factor[i] = tops[i] == -INFINITY ? 1.0f : power_of_two(tops[i] - top[i]);  // 1: of zeros
      tops[i] = top[i];
      sum[i] = 0;
#pragma unroll
      for (int k = 0; k < kEach; ++k) {
        value[i][k] = power_of_two(value[i][k] - top[i]);
        sum[i] += value[i][k];
      }
    }
    __syncwarp();  // the scores have been read
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int row = k * kWarp + lane;
      const float scale =
          T::kScalesLatent ? scales_of(where[row % kTile]).x * T::kProbability : T::kProbability;
      if (row >= kTile) continue;
#pragma unroll
      for (int i = 0; i < kHeadTiles; ++i) {
        probabilities_of(s, first_head + i)[row / 16 * 16 + place_in_16(row % 16)] =
            uint16_t(pack(value[i][k] * scale, 0.0f, Value()));
      }
    }
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
#pragma unroll
      for (int i = 0; i < kHeadTiles; ++i) {
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], offset);
      }
    }
#pragma unroll
    for (int i = 0; i < kHeadTiles; ++i) {
      sums[i] = sums[i] * factor[i] + sum[i];
      if (lane != 0) continue;
      s.factors[first_head + i] = factor[i];
      s.averages[first_head + i] = __fdividef(T::kOutputScale, sums[i]);
    }
  }

  __device__ static void add_values(Shared& s, const uint8_t* tile, int count,
                                    float (&out)[4][kHeadTiles][4]) {
    const int warp = threadIdx.x / kWarp, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
    float2 factor[kHeadTiles];
    bool rescales = false;
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      factor[n] = *reinterpret_cast<const float2*>(&s.factors[n * 8 + 2 * t]);
      rescales |= factor[n].x != 1.0f || factor[n].y != 1.0f;
    }
    if (__any_sync(0xffffffffu, rescales)) {
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          out[j][n][0] *= factor[n].x, out[j][n][1] *= factor[n].y;
          out[j][n][2] *= factor[n].x, out[j][n][3] *= factor[n].y;
        }
      }
    }
    const auto add = [&](int step) {
      uint32_t a[4][4];
      T::across(tile, step * 16 + t, warp, g, a);
      uint2 p[kHeadTiles];
#pragma unroll
      for (int n = 0; n < kHeadTiles; ++n) {
        p[n] = *reinterpret_cast<const uint2*>(probabilities_of(s, n * 8 + g) + step * 16 + 4 * t);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
          multiply(out[j][n], a[j], {p[n].x, p[n].y}, Value());
        }
      }
    };
    constexpr bool kTogether = format != KvFormat::kBF16;  // wide values leave no registers
    if (kTogether && count > kTile - 16) {
#pragma unroll
      for (int step = 0; step < kRowTiles; ++step) add(step);
    } else {
#pragma unroll 1
      for (int step = 0; step * 16 < min(count, kTile); ++step) add(step);
    }
  }

  // Heads as in weigh(), `pitch` apart.
  __device__ static void store_log_sums(int heads, const float (&tops)[kHeadTiles],
                                        const float (&sums)[kHeadTiles], float* to, int pitch) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = 0; i < kHeadTiles; ++i) {
      const int head = warp * kHeadTiles + i;
      if (lane == 0 && head < heads) to[int64_t(head) * pitch] = tops[i] + __log2f(sums[i]);
    }
  }

  __device__ static void store_averages(const Shared& s, int heads,
                                        const float (&values)[4][kHeadTiles][4], __half* to,
                                        int pitch) {
    const int warp = threadIdx.x / kWarp, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int head = n * 8 + 2 * t + i;
        if (head >= heads) continue;
        const float factor = s.averages[head];
        uint32_t packed[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          packed[j] = pack_small(values[j][n][i] * factor, values[j][n][i + 2] * factor);
        }
        *reinterpret_cast<uint4*>(to + int64_t(head) * pitch * kLatent + warp * 64 + 8 * g) =
            make_uint4(packed[0], packed[1], packed[2], packed[3]);
      }
    }
  }
};

struct SplitBlocks {
  int heads = 0, first_row = 0;
};

template <KvFormat format, int kHeadTiles, int kTile, int kStages>
constexpr size_t shared_bytes(int heads) {
  using K = Kernel<format, kHeadTiles, kTile, kStages>;
  return sizeof(typename K::Shared) + size_t(std::min(heads, K::kHeads)) * kQueryPitch * 2;
}

// Blocks: x = splits from there on, gridDim.x apart; y = row, z = group of heads.
template <KvFormat format, int kHeadTiles, int kTile, int kStages>
__global__ void __launch_bounds__(kThreads, kStages == 2 ? 2 : 1)
    split_kernel(const uint16_t* queries, Records records, SplitBlocks b, StepView step,
                 Partials out) {
  using K = Kernel<format, kHeadTiles, kTile, kStages>;
  constexpr int kBatch = K::kBatch;
  static_assert(kBatch >= kStages);
  extern __shared__ __align__(16) uint8_t memory[];
  let_successor_begin();
  typename K::Shared& s = *reinterpret_cast<typename K::Shared*>(memory);
  const int row = b.first_row + blockIdx.y, length = step.positions[row] + 1;
  const Segment segment = segment_of(step, row);  // before the branch: both loads at once
  // Longer shares fall to other blocks in the next row, which may be on the same SM.
  const int first_split = (blockIdx.x + blockIdx.y) % gridDim.x;
  if (first_split >= splits_of(length)) {
    wait_for_predecessor();
    return;
  }
  const SplitTiles<kTile> tiles(length, first_split, gridDim.x);
  const int first_head = blockIdx.z * K::kHeads, heads = min(K::kHeads, b.heads - first_head);
  // A thread's record of a batch. Those past a split's last are masked, not missing: they are given
  // its own.
  const int own_tile = threadIdx.x / kTile, own = threadIdx.x % kTile;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
  constexpr bool kSharesRow = false;  // 0.5 % of a step behind 1k, 1.2 behind 128k
#else
  constexpr bool kSharesRow = true;  // registers would be short
#endif
  const auto first_partial = [&] {
    return (int64_t(blockIdx.y) * b.heads + first_head) * out.max_splits;
  };
  const typename K::Row known{.tiles = tiles,
                              .pages = step.pages + segment.first_page,
                              .heads = heads,
                              .first_partial = kSharesRow ? uint32_t(first_partial()) : 0};
  if (kSharesRow && threadIdx.x == 0) s.row = known;
  const typename K::Row& r = kSharesRow ? s.row : known;
  typename K::Where mine{};
  uint32_t scales = 0;
  bool is_stored = true;  // before this step
  if (own_tile < tiles.count) {
    const int position = known.position(own_tile, own);
    const int32_t page = known.pages[position / records.page_size];
    mine = K::place_of(records, page, position % records.page_size);
    s.where[own_tile][own] = mine;
    is_stored = position < segment.context;
    if (K::T::kHasScales && is_stored) scales = K::scales_at(records, mine);
  }
  __syncthreads();

  bool waited = false;
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < tiles.count) {
      const int end = min(tiles.first_of(i) + kTile, tiles.end_of(tiles.split_of(i)));
      if (!waited && end > segment.context) {
        wait_for_predecessor();
        waited = true;
      }
      K::copy(records, s.where[i], s.tiles[i]);
    }
    commit_copies();
  }
  if (!waited) wait_for_predecessor();
  if (K::T::kHasScales && !is_stored) scales = K::scales_at(records, mine);
  K::load_queries(queries + (int64_t(blockIdx.y) * b.heads + first_head) * kRecord, heads,
                  s.queries);
  if (K::T::kHasScales && own_tile < tiles.count) s.where[own_tile][own].scales = scales;

  float values[4][kHeadTiles][4], tops[kHeadTiles], sums[kHeadTiles];
  const int64_t known_first = kSharesRow ? 0 : first_partial();
  int i = 0;  // of the block's tiles
  for (int split = first_split; i < tiles.count; split += r.tiles.step) {
#pragma unroll
    for (int n = 0; n < kHeadTiles; ++n) {
      tops[n] = -INFINITY, sums[n] = 0;
#pragma unroll
      for (int k = 0; k < 16; ++k) values[k / 4][n][k % 4] = 0;
    }
    for (int count = r.tiles.length_of(split); count > 0; count -= kTile, ++i) {
      wait_for_copies<kStages - 2>();
      __syncthreads();
      const int next = i + kStages - 1;
      if (next < tiles.count) {
        K::copy(records, s.where[next % (2 * kBatch)], s.tiles[next % kStages]);
      }
      commit_copies();
      // The next batch's records are looked up while this tile is computed.
      const int located = i + kBatch + own_tile;
      const bool locates = i % kBatch == 0 && located < tiles.count;
      const int position = locates ? r.position(located, own) : 0;
      const int32_t page = locates ? r.pages[position / records.page_size] : 0;
      const auto* where = s.where[i % (2 * kBatch)];
      const uint8_t* tile = s.tiles[i % kStages];
      K::score(s, tile, where, count, heads);
      typename K::Where found{};
      if (locates) {
        found = K::place_of(records, page, position % records.page_size);
        if (K::T::kHasScales) found.scales = K::scales_at(records, found);
      }
      __syncthreads();
      K::weigh(s, where, count, tops, sums);
      __syncthreads();
      K::add_values(s, tile, count, values);
      if (locates) s.where[located % (2 * kBatch)][own] = found;
    }
    const int64_t first = kSharesRow ? int64_t(r.first_partial) : known_first;
    K::store_log_sums(r.heads, tops, sums, out.log_sums + first + split, out.max_splits);
    K::store_averages(s, r.heads, values, out.values + (first + split) * kLatent, out.max_splits);
  }
}

// Records of FP32, for tests and exact evaluation: plainly. Blocks: x = split, y = row, z = head.
__global__ void __launch_bounds__(kThreads)
    split_f32_kernel(const bf16* queries, Records records, SplitBlocks b, StepView step,
                     Partials out) {
  __shared__ float query[kRecord], scores[kWarps];
  wait_for_predecessor();
  let_successor_begin();
  const int row = b.first_row + blockIdx.y, length = step.positions[row] + 1;
  const int span = split_span(length), begin = blockIdx.x * span;
  if (begin >= length) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t query_index = int64_t(blockIdx.y) * b.heads + blockIdx.z;
  for (int i = threadIdx.x; i < kRecord; i += kThreads) {
    query[i] = to_float(queries[query_index * kRecord + i]);
  }
  const int32_t* pages = step.pages + segment_of(step, row).first_page;
  const auto record = [&](int position) {
    return reinterpret_cast<const float*>(
        records.values(pages[position / records.page_size], position % records.page_size));
  };
  float top = -INFINITY, sum = 0, value[2] = {};
  for (int first = begin; first < min(begin + span, length); first += kWarps) {
    const int count = min(kWarps, min(begin + span, length) - first);
    __syncthreads();
    if (warp < count) {
      float score = 0;
      for (int i = lane; i < kRecord; i += kWarp) score += query[i] * record(first + warp)[i];
      score = warp_sum(score);
      if (lane == 0) scores[warp] = score;
    }
    __syncthreads();
    float new_top = top;
    for (int i = 0; i < count; ++i) new_top = fmaxf(new_top, scores[i]);
    const float factor = power_of_two(top - new_top);
    top = new_top, sum *= factor, value[0] *= factor, value[1] *= factor;
    for (int i = 0; i < count; ++i) {
      const float p = power_of_two(scores[i] - top);
      sum += p;
      value[0] += p * record(first + i)[threadIdx.x];
      value[1] += p * record(first + i)[threadIdx.x + kThreads];
    }
  }
  const int64_t to = query_index * out.max_splits + blockIdx.x;
  out.values[to * kLatent + threadIdx.x] = __float2half_rn(value[0] / sum);
  out.values[to * kLatent + threadIdx.x + kThreads] = __float2half_rn(value[1] / sum);
  if (threadIdx.x == 0) out.log_sums[to] = top + log2f(sum);
}

template <KvFormat format, int kHeadTiles, int kTile, int kStages>
bool launch_split(const Context& context, LatentQueries q, const KvLayer& cache, SplitBlocks blocks,
                  int rows, Partials out) {
  using K = Kernel<format, kHeadTiles, kTile, kStages>;
  const size_t shared = shared_bytes<format, kHeadTiles, kTile, kStages>(blocks.heads);
  if (shared > context.device.shared_bytes) return false;
  const auto kernel = split_kernel<format, kHeadTiles, kTile, kStages>;
  const unsigned groups = blocks_for(blocks.heads, K::kHeads);
  const int at_once = 2 * context.device.num_processors / (rows * int(groups));
  const Grid grid = one_a_processor(
      context,
      {.blocks = {unsigned(std::clamp(at_once, 1, out.max_splits)), unsigned(rows), groups},
       .threads = kThreads,
       .shared_bytes = shared});
  allow_shared(kernel, grid.shared_bytes);
  launch(context, grid, kernel, static_cast<const uint16_t*>(q.data), Records(cache), blocks,
         context.step, out);
  return true;
}

template <KvFormat format, int kHeadTiles>
void launch_format(const Context& context, LatentQueries q, const KvLayer& cache,
                   SplitBlocks blocks, int rows, Partials out) {
  // Small tiles for cards that have 99 KiB a block.
  bool launched = false;
  if constexpr (format == KvFormat::kBF16) {
    launched = launch_split<format, kHeadTiles, 32, 2>(context, q, cache, blocks, rows, out) ||
               launch_split<format, kHeadTiles, 16, 3>(context, q, cache, blocks, rows, out);
  } else if constexpr (format == KvFormat::kNvfp4) {
    launched = launch_split<format, kHeadTiles, 64, 2>(context, q, cache, blocks, rows, out);
  } else {
    launched = launch_split<format, kHeadTiles, 64, 2>(context, q, cache, blocks, rows, out) ||
               launch_split<format, kHeadTiles, 32, 3>(context, q, cache, blocks, rows, out);
  }
  CHECK(launched, "%d heads", blocks.heads);
}

// Of a block. Where there are few, each has a part of the heads, which takes less time and gives
// the same bits: a third; or half, if two thirds of one tile would share a multiprocessor.
int head_tiles(const Context& context, const MlaShape& shape, RowRange rows, const Partials& out) {
  const int processors = context.device.num_processors, blocks = rows.count * out.max_splits;
  const bool has_one_tile = context.step.length_bound <= 4096;
  if (shape.heads <= 8) return 1;
  if (3 * blocks <= processors) return 1;
  if (rows.count == 1 && has_one_tile && 2 * blocks <= processors) return 2;
  return 3 * blocks <= 2 * processors ? 1 : 3;
}

}  // namespace

int most_splits(int bound) {
  if (bound > 16384) return kMostSplits;
  const int most = bound <= 4096 ? splits_of(bound) : std::max(64, splits_of(bound));
  return (most + kBlockSplits - 1) / kBlockSplits * kBlockSplits;
}

void attend_splits(const Context& context, LatentQueries q, const MlaShape& shape, RowRange rows,
                   const KvLayer& cache, Partials out) {
  const SplitBlocks blocks{.heads = shape.heads, .first_row = rows.first};
  const auto run = [&]<KvFormat format>() {
    switch (head_tiles(context, shape, rows, out)) {
      case 1:
        return launch_format<format, 1>(context, q, cache, blocks, rows.count, out);
      case 2:
        return launch_format<format, 2>(context, q, cache, blocks, rows.count, out);
      default:
        return launch_format<format, 3>(context, q, cache, blocks, rows.count, out);
    }
  };
  switch (cache.format) {
    case KvFormat::kF32:
      return launch(
          context,
          {.blocks = {unsigned(out.max_splits), unsigned(rows.count), unsigned(shape.heads)},
           .threads = kThreads},
          split_f32_kernel, static_cast<const bf16*>(q.data), Records(cache), blocks, context.step,
          out);
    case KvFormat::kBF16:
      return run.operator()<KvFormat::kBF16>();
    case KvFormat::kFp8:
      return run.operator()<KvFormat::kFp8>();
    case KvFormat::kInt8:
      return run.operator()<KvFormat::kInt8>();
    case KvFormat::kNvfp4:
      return run.operator()<KvFormat::kNvfp4>();
  }
}

}  // namespace nibble::cuda
