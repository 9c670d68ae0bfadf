// attend_splits: for one row, a group of heads and a span of positions
//
//   s[p][h] = record[p] . q'[h]          p[p][h] = 2^(s - top)          o[h] = sum_p p[p][h]
//   latent[p]
//
// with records as they are stored. Positions are the 16 rows of a product and heads its columns, 8
// at a time: 20 heads fill 24, where heads as rows would fill 32. A block walks tiles of positions
// that cp.async brings kStages - 1 ahead: scores (a warp takes 16 positions and a slice of the
// record), softmax (a warp takes heads), outputs (a warp takes 64 columns of the latent). Two
// blocks share an SM, so that one computes while the other waits.
//
// Records of earlier steps are fetched before the predecessor has ended.
//
// H100, 20 heads, 8 rows x 32k positions, kv_b's products counted: BF16 62 % of 3.0 TB/s of
// records, INT8 42 %, FP8 39 %, NVFP4 26 %: unpacking and products, not memory, bound the packed
// formats.
#include "backend/cuda/mla_stages.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kQueryPitch = kRecord + 8;     // 16-bit values
constexpr float kProbabilityScale = 256.0f;  // keeps small ones out of FP16's subnormals

// A tile of records in shared memory, by format. along() gives k-steps 0 and 1 of four, and then
// the others; what comes at once gives all the first time. Pieces are 16 bytes; swizzles let the
// lanes of a load meet all banks. kLatentScale: a score's factor where a record has no scale of its
// own for the latent. kOutputScale undoes the scales of probabilities and values.
template <KvFormat format>
struct Tile;

template <>
struct Tile<KvFormat::kBF16> {
  using Value = bf16;
  static constexpr int kBytes = 2 * kRecord;
  static constexpr bool kHasScales = false, kScalesLatent = false;
  static constexpr float kLatentScale = 1.0f, kOutputScale = 1.0f;
  static constexpr float kProbability = 1.0f;

  __device__ static __forceinline__ int swizzle(int row) { return (row & 1) | (row & 3) << 1; }
  // Piece `piece` of the 8 of a chunk.
  __device__ static __forceinline__ const uint8_t* piece_at(const uint8_t* tile, int row, int chunk,
                                                            int piece) {
    return tile + row * kBytes + (piece ^ swizzle(row)) * 16 + chunk * 128;
  }
  __device__ static __forceinline__ void along(const uint8_t* tile, int row, int chunk, int t,
                                               int half, uint32_t (&a)[4][2]) {
    const uint4 v = *reinterpret_cast<const uint4*>(piece_at(tile, row, chunk, 2 * t + half));
    a[2 * half][0] = v.x, a[2 * half][1] = v.y;
    a[2 * half + 1][0] = v.z, a[2 * half + 1][1] = v.w;
  }
  // The rope key's k-step j.
  __device__ static __forceinline__ void rope(const uint8_t* tile, int row, int j, int t,
                                              uint32_t (&a)[2]) {
    const uint2 v = *reinterpret_cast<const uint2*>(
        piece_at(tile, row, kLatent / 64, 2 * t + j / 2) + j % 2 * 8);
    a[0] = v.x, a[1] = v.y;
  }
  __device__ static __forceinline__ void across(const uint8_t* tile, int row, int chunk, int g,
                                                uint32_t (&a)[4][4]) {
    uint4 v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[i] = *reinterpret_cast<const uint4*>(piece_at(tile, row, chunk, g) + 4 * i * kBytes);
    }
    decode_across(v, a);
  }
};

template <bool is_int8>
struct ByteTile {
  using Value = __half;
  static constexpr int kBytes = kRecord;
  static constexpr bool kHasScales = is_int8, kScalesLatent = is_int8;
  static constexpr float kLatentScale = 256.0f;  // E4M3 comes times 2^-8
  static constexpr float kOutputScale = is_int8 ? 1.0f / kProbabilityScale : 1.0f;
  static constexpr float kProbability = kProbabilityScale;

  __device__ static __forceinline__ int swizzle(int row) { return row & 2; }
  // Piece `piece` of the 4 of a chunk.
  __device__ static __forceinline__ const uint8_t* piece_at(const uint8_t* tile, int row, int chunk,
                                                            int piece) {
    return tile + row * kBytes + (piece ^ swizzle(row)) * 16 + chunk * 64;
  }
  __device__ static __forceinline__ void along(const uint8_t* tile, int row, int chunk, int t,
                                               int half, uint32_t (&a)[4][2]) {
    if (half > 0) return;
    decode_along<is_int8>(*reinterpret_cast<const uint4*>(piece_at(tile, row, chunk, t)), a);
  }
  __device__ static __forceinline__ void rope(const uint8_t* tile, int row, int j, int t,
                                              uint32_t (&a)[2]) {
    decode_4_along<is_int8>(
        *reinterpret_cast<const uint32_t*>(piece_at(tile, row, kLatent / 64, t) + 4 * j), a);
  }
  __device__ static __forceinline__ void across(const uint8_t* tile, int row, int chunk, int g,
                                                uint32_t (&a)[4][4]) {
    uint2 v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[i] = *reinterpret_cast<const uint2*>(piece_at(tile, row, chunk, g / 2) + g % 2 * 8 +
                                             4 * i * kBytes);
    }
    decode_across<is_int8>(v, a);
  }
};
template <>
struct Tile<KvFormat::kFp8> : ByteTile<false> {};
template <>
struct Tile<KvFormat::kInt8> : ByteTile<true> {};

template <>
struct Tile<KvFormat::kNvfp4> {
  using Value = __half;
  static constexpr int kScalesAt = kLatent / 2, kRopeAt = kScalesAt + kLatent / 16;
  static constexpr int kBytes = kRopeAt + kRope;
  static constexpr bool kHasScales = true, kScalesLatent = false;
  static constexpr float kLatentScale = 128.0f;  // values come times 2^-7
  static constexpr float kOutputScale = 128.0f / kProbabilityScale;
  static constexpr float kProbability = kProbabilityScale;

  __device__ static __forceinline__ int swizzle(int) { return 0; }
  __device__ static __forceinline__ void along(const uint8_t* tile, int row, int chunk, int t,
                                               int half, uint32_t (&a)[4][2]) {
    if (half > 0) return;
    const uint8_t* record = tile + row * kBytes;
    decode_along(*reinterpret_cast<const uint2*>(record + 32 * chunk + 8 * t),
                 record[kScalesAt + 4 * chunk + t], a);
  }
  __device__ static __forceinline__ void rope(const uint8_t* tile, int row, int j, int t,
                                              uint32_t (&a)[2]) {
    decode_4_along<true>(
        *reinterpret_cast<const uint32_t*>(tile + row * kBytes + kRopeAt + 16 * t + 4 * j), a);
  }
  __device__ static __forceinline__ void across(const uint8_t* tile, int row, int chunk, int g,
                                                uint32_t (&a)[4][4]) {
    uint32_t v[4], scales = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint8_t* record = tile + (row + 4 * i) * kBytes;
      v[i] = *reinterpret_cast<const uint32_t*>(record + 32 * chunk + 4 * g);
      scales |= uint32_t(record[kScalesAt + 4 * chunk + g / 2]) << (8 * i);
    }
    decode_across(v, scales, a);
  }
};

template <KvFormat format, int kHeadTiles, int kTile, int kStages>
struct Kernel {
  using T = Tile<format>;
  using Value = typename T::Value;
  static constexpr int kHeads = 8 * kHeadTiles;
  static constexpr int kRowTiles = kTile / 16, kSlices = kWarps / kRowTiles;
  static constexpr int kScorePitch = kTile + 4;

  struct Shared {
    alignas(16) uint8_t tiles[kStages][kTile * T::kBytes];
    // Of a head in the last slice, the scores give way to its probabilities.
    alignas(16) float scores[kSlices][kHeads][kScorePitch];
    float factors[kHeads];           // of the outputs so far; at the end, of all
    alignas(16) uint16_t queries[];  // [heads, kQueryPitch]; then Where, a position
  };

  __device__ static uint16_t* probabilities_of(Shared& s, int head) {
    return reinterpret_cast<uint16_t*>(s.scores[kSlices - 1][head]);
  }

  struct Where {      // of a record
    uint32_t values;  // in 16 bytes from the cache's start
    uint32_t scales;  // in 2 bytes from there; then themselves: BF16 of latent and rope key
  };

  // Positions past the last of the span are given its record: they are masked, not missing.
  __device__ static void locate(const Records& records, const int32_t* pages, int first, int count,
                                Where* where) {
    for (int i = threadIdx.x; i < (count + kTile - 1) / kTile * kTile; i += kThreads) {
      const uint32_t position = first + min(i, count - 1), page_size = records.page_size;
      const uint32_t index = position / page_size, slot = position - index * page_size;
      const uint32_t page = uint32_t(pages[index]) * records.page_units;
      where[i].values = page + slot * records.value_units;
      if constexpr (T::kHasScales) {
        where[i].scales =
            (page + page_size * records.value_units) * 8 + slot * (records.scale_bytes / 2);
      }
    }
  }
  __device__ static void load_scales(const Records& records, int count, Where* where) {
    for (int i = threadIdx.x; i < (count + kTile - 1) / kTile * kTile; i += kThreads) {
      const uint8_t* at = records.data + uint64_t(where[i].scales) * 2;
      where[i].scales = T::kScalesLatent ? *reinterpret_cast<const uint32_t*>(at)
                                         : uint32_t(*reinterpret_cast<const uint16_t*>(at)) << 16;
    }
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

  __device__ static void score(Shared& s, const uint8_t* tile, const Where* where, int heads) {
    const int warp = threadIdx.x / kWarp, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
    const int first = warp % kRowTiles * 16, slice = warp / kRowTiles;
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
      const float low_ratio = low.x == 0 ? 0 : low.y / low.x;
      const float high_ratio = high.x == 0 ? 0 : high.y / high.x;
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
      factor[i] = power_of_two(tops[i] - top[i]);
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
      if (lane == 0) s.factors[first_head + i] = factor[i];
    }
  }

  __device__ static void add_values(Shared& s, const uint8_t* tile,
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
#pragma unroll(format == KvFormat::kBF16 ? 1 : kRowTiles)  // wide values leave no registers
    for (int step = 0; step < kRowTiles; ++step) {
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
    }
  }
};

struct SplitBlocks {
  int heads = 0, first_row = 0;
  int most_span = 0;  // positions
};

template <KvFormat format, int kHeadTiles, int kTile, int kStages>
constexpr size_t shared_bytes(int heads, int most_span) {
  using K = Kernel<format, kHeadTiles, kTile, kStages>;
  return sizeof(typename K::Shared) + size_t(std::min(heads, K::kHeads)) * kQueryPitch * 2 +
         size_t(most_span + kTile) * sizeof(typename K::Where);
}

// Blocks: x = split, y = row, z = group of heads.
template <KvFormat format, int kHeadTiles, int kTile, int kStages>
__global__ void __launch_bounds__(kThreads, 2)
    split_kernel(const uint16_t* queries, Records records, SplitBlocks b, StepView step,
                 Partials out) {
  using K = Kernel<format, kHeadTiles, kTile, kStages>;
  extern __shared__ __align__(16) uint8_t memory[];
  let_successor_begin();
  typename K::Shared& s = *reinterpret_cast<typename K::Shared*>(memory);
  const int row = b.first_row + blockIdx.y, length = step.positions[row] + 1;
  const Segment segment = segment_of(step, row);  // before the branch: both loads at once
  const int span = split_span(length), begin = blockIdx.x * span;
  if (begin >= length) {
    wait_for_predecessor();
    return;
  }
  const int count = min(span, length - begin), tiles = (count + kTile - 1) / kTile;
  const int first_head = blockIdx.z * K::kHeads, heads = min(K::kHeads, b.heads - first_head);
  auto* where = reinterpret_cast<typename K::Where*>(s.queries + heads * kQueryPitch);
  const int stored = segment.context - begin;  // by earlier steps
  K::locate(records, step.pages + segment.first_page, begin, count, where);
  __syncthreads();

  bool waited = false;
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (!waited && min((i + 1) * kTile, count) > stored) {
      wait_for_predecessor();
      waited = true;
    }
    if (i < tiles) K::copy(records, where + i * kTile, s.tiles[i]);
    commit_copies();
  }
  if (!waited) wait_for_predecessor();
  if constexpr (K::T::kHasScales) K::load_scales(records, count, where);
  K::load_queries(queries + (int64_t(blockIdx.y) * b.heads + first_head) * kRecord, heads,
                  s.queries);

  float values[4][kHeadTiles][4] = {}, tops[kHeadTiles], sums[kHeadTiles] = {};
#pragma unroll
  for (int i = 0; i < kHeadTiles; ++i) tops[i] = -INFINITY;
  for (int i = 0; i < tiles; ++i) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    const int next = i + kStages - 1;
    if (next < tiles) K::copy(records, where + next * kTile, s.tiles[next % kStages]);
    commit_copies();
    K::score(s, s.tiles[i % kStages], where + i * kTile, heads);
    __syncthreads();
    K::weigh(s, where + i * kTile, count - i * kTile, tops, sums);
    __syncthreads();
    K::add_values(s, s.tiles[i % kStages], values);
  }

  __syncthreads();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int64_t first = (int64_t(blockIdx.y) * b.heads + first_head) * out.max_splits + blockIdx.x;
#pragma unroll
  for (int i = 0; i < kHeadTiles; ++i) {
    const int head = warp * kHeadTiles + i;
    if (lane != 0 || head >= heads) continue;
    s.factors[head] = __fdividef(K::T::kOutputScale, sums[i]);
    out.log_sums[first + int64_t(head) * out.max_splits] = tops[i] + __log2f(sums[i]);
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int head = n * 8 + 2 * t + i;
      if (head >= heads) continue;
      const float factor = s.factors[head];
      uint32_t packed[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        packed[j] = pack_small(values[j][n][i] * factor, values[j][n][i + 2] * factor);
      }
      __half* to = out.values + (first + int64_t(head) * out.max_splits) * kLatent;
      *reinterpret_cast<uint4*>(to + warp * 64 + 8 * g) =
          make_uint4(packed[0], packed[1], packed[2], packed[3]);
    }
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
  const size_t shared =
      shared_bytes<format, kHeadTiles, kTile, kStages>(blocks.heads, blocks.most_span);
  if (shared > context.device.shared_bytes) return false;
  const auto kernel = split_kernel<format, kHeadTiles, kTile, kStages>;
  allow_shared(kernel, shared);
  launch(context,
         {.blocks = {unsigned(out.max_splits), unsigned(rows), blocks_for(blocks.heads, K::kHeads)},
          .threads = kThreads,
          .shared_bytes = shared},
         kernel, static_cast<const uint16_t*>(q.data), Records(cache), blocks, context.step, out);
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
  CHECK(launched, "a span of %d positions", blocks.most_span);
}

}  // namespace

int most_splits(int bound) {
  if (bound <= 4096) return splits_of(bound);
  return bound <= 16384 ? std::max(64, splits_of(bound)) : 128;
}

void attend_splits(const Context& context, LatentQueries q, const MlaShape& shape, RowRange rows,
                   const KvLayer& cache, Partials out) {
  const SplitBlocks blocks{.heads = shape.heads,
                           .first_row = rows.first,
                           .most_span = split_span(context.step.length_bound)};
  const auto run = [&]<KvFormat format>() {
    // Few blocks: a third of the heads each, which takes less time and gives the same bits.
    const bool few = 3 * rows.count * out.max_splits <= 2 * context.device.num_processors;
    if (shape.heads <= 8 || few) {
      launch_format<format, 1>(context, q, cache, blocks, rows.count, out);
    } else {
      launch_format<format, 3>(context, q, cache, blocks, rows.count, out);
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
