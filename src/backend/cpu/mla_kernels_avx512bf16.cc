// Attention by BF16 dot products (vdpbf16ps): mla_kernels.cc says what is computed. Queries and
// probabilities are rounded to BF16; BF16 records are taken as they are stored, others are made
// BF16 a block at a time, exactly: their scales multiply the scores of each part of the record, and
// the probabilities before those are rounded.
//
// Scores: tiles of queries by 4 positions, lanes over the values of a record. Values: 64 columns of
// the latent at a time; records are interleaved by pairs of positions, then tiles of queries by 64
// columns, positions innermost.
//
// Measured on one core of an EPYC (Zen 4) guest by its own time, others computing beside: 20
// queries over 1,024 positions 169 of 235 GFLOP/s (72%).
#include "backend/cpu/mla_kernels.h"

#if defined(__x86_64__)

#include <algorithm>
#include <limits>

#include "backend/cpu/intrinsics.h"

namespace nibble {
namespace {

constexpr int kMaxQueries = 6;
constexpr int kPositions = 4;       // scored at once
constexpr int kPositionsAhead = 8;  // whose records are fetched while others are scored
constexpr int kVectors = kAttentionValueColumns / 16;

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#endif

inline __m512bh load_halves(const void* from) {
  return (__m512bh)_mm512_loadu_si512(from);
}

// The sums of the lanes of four vectors.
inline __m128 sums_of_lanes(const __m512* v) {
  const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
  const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
  const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
  const __m512 quarters = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)),
                                        _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
  const __m256 halves =
      _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
  return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

// A block's records as the kernels read them.
struct Block {
  const KvRecord* records;     // [kAttentionBlock] values in BF16
  const float* latent_scales;  // [kAttentionBlock], or null: no scales
  const float* rope_scales;
};

// Adds the products of the columns [first, last) of kPositions records.
template <int kQueries>
inline void add_scores(const uint16_t* q, int64_t dim, const uint8_t* const* rows, int64_t first,
                       int64_t last, __m512 (&sum)[kQueries][kPositions]) {
  for (int64_t d = first; d < last; d += 32) {
    __m512bh c[kPositions];
#pragma GCC unroll 4
    for (int j = 0; j < kPositions; ++j) c[j] = load_halves(rows[j] + 2 * d);
#pragma GCC unroll 6
    for (int i = 0; i < kQueries; ++i) {
      const __m512bh x = load_halves(q + i * dim + d);
#pragma GCC unroll 4
      for (int j = 0; j < kPositions; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], x, c[j]);
    }
  }
}

template <int kQueries>
inline void clear(__m512 (&sum)[kQueries][kPositions]) {
#pragma GCC unroll 6
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kPositions; ++j) sum[i][j] = _mm512_setzero_ps();
  }
}

// kPositions scores from `position` of the block on.
template <int kQueries>
void score_tile(const uint16_t* q, const AttentionShape& shape, const Block& block,
                int64_t position, float* scores) {
  const uint8_t* rows[kPositions];
  for (int j = 0; j < kPositions; ++j) {
    rows[j] = block.records[position + j].values + 2 * shape.key_first;
  }
  __m512 sum[kQueries][kPositions];
  clear(sum);
  if (block.latent_scales == nullptr) {
    add_scores(q, shape.key_dim, rows, 0, shape.key_dim, sum);
#pragma GCC unroll 6
    for (int i = 0; i < kQueries; ++i) {
      _mm_storeu_ps(scores + i * kAttentionBlock, sums_of_lanes(sum[i]));
    }
    return;
  }
  add_scores(q, shape.key_dim, rows, 0, shape.latent_dim, sum);
  const __m128 latent_scales = _mm_loadu_ps(block.latent_scales + position);
  __m128 total[kQueries];
#pragma GCC unroll 6
  for (int i = 0; i < kQueries; ++i) total[i] = _mm_mul_ps(sums_of_lanes(sum[i]), latent_scales);
  clear(sum);
  add_scores(q, shape.key_dim, rows, shape.latent_dim, shape.key_dim, sum);
  const __m128 rope_scales = _mm_loadu_ps(block.rope_scales + position);
#pragma GCC unroll 6
  for (int i = 0; i < kQueries; ++i) {
    const __m128 score = _mm_fmadd_ps(sums_of_lanes(sum[i]), rope_scales, total[i]);
    _mm_storeu_ps(scores + i * kAttentionBlock, score);
  }
}

// A tile of queries' sums over `pairs` pairs of positions.
struct ValueTile {
  const uint32_t* p;       // [queries, kAttentionBlock / 2] pairs of probabilities
  const float* factors;    // [queries] of the sums so far
  const uint8_t* latents;  // [pairs, kAttentionValueColumns] pairs of values
  int64_t pairs;
  float* values;  // [queries, stride]
  int64_t stride;
};

template <int kQueries>
void value_tile(const ValueTile& tile) {
  __m512 sum[kQueries][kVectors];
#pragma GCC unroll 6
  for (int i = 0; i < kQueries; ++i) {
    const __m512 factor = _mm512_set1_ps(tile.factors[i]);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sum[i][v] = _mm512_mul_ps(_mm512_loadu_ps(tile.values + i * tile.stride + v * 16), factor);
    }
  }
  const uint8_t* latents = tile.latents;
  for (int64_t j = 0; j < tile.pairs; ++j, latents += kVectors * 64) {
    __m512bh c[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) c[v] = load_halves(latents + v * 64);
#pragma GCC unroll 6
    for (int i = 0; i < kQueries; ++i) {
      const uint32_t pair = tile.p[i * (kAttentionBlock / 2) + j];
      const __m512bh x = (__m512bh)_mm512_set1_epi32(int32_t(pair));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], x, c[v]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      _mm512_storeu_ps(tile.values + i * tile.stride + v * 16, sum[i][v]);
    }
  }
}

template <int kQueries = kMaxQueries>
void score_queries(int count, const uint16_t* q, const AttentionShape& shape, const Block& block,
                   int64_t position, float* scores) {
  if (count == kQueries) {
    score_tile<kQueries>(q, shape, block, position, scores);
  } else if constexpr (kQueries > 1) {
    score_queries<kQueries - 1>(count, q, shape, block, position, scores);
  }
}

template <int kQueries = kMaxQueries>
void value_queries(int count, const ValueTile& tile) {
  if (count == kQueries) {
    value_tile<kQueries>(tile);
  } else if constexpr (kQueries > 1) {
    value_queries<kQueries - 1>(count, tile);
  }
}

// `count` values, a multiple of 32.
void round_to_bf16(const float* x, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; i += 32) {
    const __m512bh v = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i));
    _mm512_storeu_si512(out + i, (__m512i)v);
  }
}

// Columns [d, d + kAttentionValueColumns) of the records, by pairs of positions.
void interleave(const KvRecord* records, int64_t pairs, int64_t d, uint8_t* out) {
  alignas(64) uint16_t order[32];
  for (int i = 0; i < 32; ++i) order[i] = uint16_t(i / 2 + i % 2 * 32);
  const __m512i first = _mm512_load_si512(order);
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  for (int64_t j = 0; j < pairs; ++j) {
    for (int half = 0; half < kVectors / 2; ++half, out += 128) {
      const __m512i a = _mm512_loadu_si512(records[2 * j].values + 2 * d + 64 * half);
      const __m512i b = _mm512_loadu_si512(records[2 * j + 1].values + 2 * d + 64 * half);
      _mm512_storeu_si512(out, _mm512_permutex2var_epi16(a, first, b));
      _mm512_storeu_si512(out + 64, _mm512_permutex2var_epi16(a, second, b));
    }
  }
}

// Calls body(first query, count) for tiles of about the same number of the queries from `first` on.
template <typename Body>
inline void for_each_tile(int first, int end, Body body) {
  const int count = end - first, tiles = (count + kMaxQueries - 1) / kMaxQueries;
  for (int t = 0; t < tiles; ++t) {
    const int q = first + count * t / tiles;
    body(q, first + count * (t + 1) / tiles - q);
  }
}

struct Halves {
  uint16_t* queries;  // [n, key_dim]
  uint16_t* p;        // [n, kAttentionBlock]
  uint8_t* latents;   // [kAttentionBlock / 2, kAttentionValueColumns, 2]
};

// The records of kPositions positions, up to `last`.
inline void prefetch_records(const RecordPages& pages, int64_t position, int64_t last) {
  const int64_t bytes = kv_value_bytes(pages.cache);
  for (int64_t end = std::min(position + kPositions, last); position < end; ++position) {
    const uint8_t* values = pages.at(position).values;
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(values + i, 0, 2);
  }
}

// Makes the records of a block BF16, where they are not, in `memory`.
void convert_block(const RecordPages& pages, int64_t start, int64_t size, int64_t last,
                   KvRecord* records, uint16_t* memory, float* latent_scales, float* rope_scales) {
  for (int64_t j = 0; j < size; ++j) {
    if (j % kPositions == 0) prefetch_records(pages, start + j + kPositionsAhead, last);
    uint16_t* const out = memory + j * pages.cache.width;
    convert_record_avx512bf16(pages.cache, records[j], out, latent_scales + j, rope_scales + j);
    records[j].values = reinterpret_cast<uint8_t*>(out);
  }
  for (int64_t j = size; j < kAttentionBlock; ++j) {
    records[j] = records[size - 1];
    latent_scales[j] = rope_scales[j] = 0;
  }
}

// Probabilities of the queries from `first` on, times the records' scales where there are any.
void round_probabilities(int first, int count, const float* scales, float* scores,
                         uint16_t* halves) {
  for (int q = first; q < count && scales != nullptr; ++q) {
    float* const p = scores + q * kAttentionBlock;
    for (int j = 0; j < kAttentionBlock; j += 16) {
      _mm512_storeu_ps(p + j, _mm512_mul_ps(_mm512_loadu_ps(p + j), _mm512_loadu_ps(scales + j)));
    }
  }
  round_to_bf16(scores + first * kAttentionBlock, (count - first) * kAttentionBlock,
                halves + first * kAttentionBlock);
}

// A block of positions from `start` on for the queries from `first` on; `last`: of the span.
void attend_block(const AttentionQueries& queries, int first, const RecordPages& pages,
                  int64_t start, int64_t last, const AttentionShape& shape,
                  const AttentionScratch& scratch, const Halves& halves, const AttentionSums& out) {
  const int64_t size = std::min<int64_t>(last - start, kAttentionBlock);
  KvRecord records[kAttentionBlock];
  find_records(pages, start, size, records);
  float scales[2][kAttentionBlock];
  Block block{.records = records, .latent_scales = nullptr, .rope_scales = nullptr};
  const bool stored = pages.cache.format == KvFormat::kBF16;
  if (!stored) {
    convert_block(pages, start, size, last, records, reinterpret_cast<uint16_t*>(scratch.records),
                  scales[0], scales[1]);
    if (pages.cache.format != KvFormat::kFp8) {
      block.latent_scales = scales[0], block.rope_scales = scales[1];
    }
  }
  for (int64_t j = 0; j < size; j += kPositions) {
    if (stored) prefetch_records(pages, start + j + kPositionsAhead, last);
    for_each_tile(first, queries.count, [&](int q, int count) {
      score_queries(count, halves.queries + q * shape.key_dim, shape, block, j,
                    scratch.scores + q * kAttentionBlock + j);
    });
  }
  softmax_block(queries, first, start, shape.scale, scratch, out);
  round_probabilities(first, queries.count, block.latent_scales, scratch.scores, halves.p);
  const int64_t pairs = (size + 1) / 2;
  for (int64_t d = 0; d < shape.latent_dim; d += kAttentionValueColumns) {
    interleave(records, pairs, d, halves.latents);
    for_each_tile(first, queries.count, [&](int q, int count) {
      value_queries(count, {.p = reinterpret_cast<uint32_t*>(halves.p + q * kAttentionBlock),
                            .factors = scratch.factors + q,
                            .latents = halves.latents,
                            .pairs = pairs,
                            .values = out.values + q * shape.latent_dim + d,
                            .stride = shape.latent_dim});
    });
  }
}

}  // namespace

void attend_span_avx512bf16(const AttentionQueries& queries, const RecordPages& pages,
                            int64_t first, int64_t last, const AttentionShape& shape,
                            const AttentionScratch& scratch, const AttentionSums& out) {
  const Halves halves{.queries = scratch.halves,
                      .p = scratch.halves + queries.count * shape.key_dim,
                      .latents = reinterpret_cast<uint8_t*>(
                          scratch.halves + queries.count * (shape.key_dim + kAttentionBlock))};
  for (int q = 0; q < queries.count; ++q) {
    round_to_bf16(queries.rows[q], shape.key_dim, halves.queries + q * shape.key_dim);
    out.top[q] = -std::numeric_limits<float>::infinity();
    out.sum[q] = 0;
  }
  std::fill_n(out.values, queries.count * shape.latent_dim, 0.0f);
  for_each_block(queries, first, last, [&](int q, int64_t start) {
    attend_block(queries, q, pages, start, last, shape, scratch, halves, out);
  });
}

}  // namespace nibble

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
