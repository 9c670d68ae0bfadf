// Attention by BF16 tiles (AMX): mla_kernels.cc says what is computed. Queries and probabilities
// are rounded to BF16; records are BF16.
//
// Of a block of 64 positions, keys become lines of a pair of values of 16 positions each, latents
// lines of 16 columns of a pair of positions each, as tiles want their second operand. Then scores
// are tiles of queries by positions, and the sums, which stay in memory between blocks, tiles of
// queries by columns.
//
// On a Xeon (Sapphire Rapids) guest, of the time of prompts of 512 and 2,048 at real widths it is
// 13 %, the softmax beside it 5 %; FP32 took a third. Two cores, others computing beside, 512 rows
// of 20 heads, expansion counted: 0.41 TFLOP/s from empty, 0.40 behind 1,536, 8 % of 5.04.
#include "backend/cpu/mla_kernels.h"

#if defined(__x86_64__)

#include <algorithm>
#include <limits>

#include "backend/cpu/amx_tiles.h"

namespace nibble {
namespace {

using namespace amx;

constexpr int64_t kPositionTiles = kAttentionBlock / kTileRows;
constexpr int64_t kScoreBytes = kAttentionBlock * int64_t(sizeof(float));

// Four of the 32-bit words of each of 4 rows, as 4 of each of 4 words.
struct Quad {
  __m512i v[4];
};
NIBBLE_AMX Quad transpose_in_quarters(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab_low = _mm512_unpacklo_epi32(a, b), ab_high = _mm512_unpackhi_epi32(a, b);
  const __m512i cd_low = _mm512_unpacklo_epi32(c, d), cd_high = _mm512_unpackhi_epi32(c, d);
  return {{_mm512_unpacklo_epi64(ab_low, cd_low), _mm512_unpackhi_epi64(ab_low, cd_low),
           _mm512_unpacklo_epi64(ab_high, cd_high), _mm512_unpackhi_epi64(ab_high, cd_high)}};
}

// A tile of 16 rows' words, 64 bytes of each, as 16 lines of a word of each row.
NIBBLE_AMX void transpose_words(const KvRecord* rows, int64_t offset_bytes, uint8_t* out) {
  Quad quads[4];  // of rows 4 i .. 4 i + 3; quarter q of vector w has word 4 q + w
  for (int i = 0; i < 4; ++i) {
    const auto load = [&](int j) __attribute__((always_inline, NIBBLE_AMX_TARGET)) {
      return _mm512_loadu_si512(rows[4 * i + j].values + offset_bytes);
    };
    quads[i] = transpose_in_quarters(load(0), load(1), load(2), load(3));
  }
  for (int w = 0; w < 4; ++w) {
    const __m512i a = quads[0].v[w], b = quads[1].v[w], c = quads[2].v[w], d = quads[3].v[w];
    // Quarters 0 and 2, and 1 and 3, of rows 0 .. 7 and of 8 .. 15.
    const __m512i ab_even = _mm512_shuffle_i32x4(a, b, 0x88);
    const __m512i ab_odd = _mm512_shuffle_i32x4(a, b, 0xdd);
    const __m512i cd_even = _mm512_shuffle_i32x4(c, d, 0x88);
    const __m512i cd_odd = _mm512_shuffle_i32x4(c, d, 0xdd);
    _mm512_store_si512(out + w * kLineBytes, _mm512_shuffle_i32x4(ab_even, cd_even, 0x88));
    _mm512_store_si512(out + (8 + w) * kLineBytes, _mm512_shuffle_i32x4(ab_even, cd_even, 0xdd));
    _mm512_store_si512(out + (4 + w) * kLineBytes, _mm512_shuffle_i32x4(ab_odd, cd_odd, 0x88));
    _mm512_store_si512(out + (12 + w) * kLineBytes, _mm512_shuffle_i32x4(ab_odd, cd_odd, 0xdd));
  }
}

// Tiles [position tile][step of 32 values].
NIBBLE_AMX_CALLED void make_key_tiles(const KvRecord* records, const AttentionShape& shape,
                                      uint8_t* out) {
  for (int64_t tile = 0; tile < kPositionTiles; ++tile) {
    for (int64_t d = 0; d < shape.key_dim; d += kStepColumns, out += kTileBytes) {
      transpose_words(records + tile * kTileRows, 2 * (shape.key_first + d), out);
    }
  }
}

// Tiles [16 columns][step of 32 positions].
NIBBLE_AMX_CALLED void make_latent_tiles(const KvRecord* records, int64_t latent_dim,
                                         uint8_t* out) {
  constexpr int64_t kColumnBytes = kAttentionBlock / kStepColumns * kTileBytes;
  alignas(64) uint16_t order[32];
  for (int i = 0; i < 32; ++i) order[i] = uint16_t(i / 2 + i % 2 * 32);
  const __m512i first = _mm512_load_si512(order);
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  for (int64_t j = 0; j < kAttentionBlock / 2; ++j) {
    uint8_t* line = out + j * kLineBytes;
    for (int64_t d = 0; d < latent_dim; d += 32, line += 2 * kColumnBytes) {
      const __m512i a = _mm512_loadu_si512(records[2 * j].values + 2 * d);
      const __m512i b = _mm512_loadu_si512(records[2 * j + 1].values + 2 * d);
      _mm512_store_si512(line, _mm512_permutex2var_epi16(a, first, b));
      _mm512_store_si512(line + kColumnBytes, _mm512_permutex2var_epi16(a, second, b));
    }
  }
}

template <bool kTwoTiles>
NIBBLE_AMX_CALLED void score_rows(const uint16_t* queries, int64_t key_dim, const uint8_t* keys,
                                  float* scores) {
  const int64_t steps = key_dim / kStepColumns;
  for (int64_t tile = 0; tile < kPositionTiles; tile += 2) {
    clear_sums<kTwoTiles, true>();
    add_products<kTwoTiles, true>(
        reinterpret_cast<const uint8_t*>(queries), 2 * key_dim,
        {.data = keys + tile * steps * kTileBytes, .panel_bytes = steps * kTileBytes}, steps);
    store_sums<kTwoTiles, true>(scores + tile * kTileRows, kScoreBytes);
  }
}

template <bool kTwoTiles>
NIBBLE_AMX_CALLED void add_values(const uint16_t* p, const uint8_t* latents, int64_t latent_dim,
                                  float* values) {
  constexpr int64_t kSteps = kAttentionBlock / kStepColumns;
  const int64_t stride = latent_dim * int64_t(sizeof(float));
  for (int64_t d = 0; d < latent_dim; d += 2 * kPanelRows) {
    load_sums<kTwoTiles, true>(values + d, stride);
    add_products<kTwoTiles, true>(reinterpret_cast<const uint8_t*>(p), 2 * kAttentionBlock,
                                  {.data = latents + d / kPanelRows * kSteps * kTileBytes,
                                   .panel_bytes = kSteps * kTileBytes},
                                  kSteps);
    store_sums<kTwoTiles, true>(values + d, stride);
  }
}

NIBBLE_AMX_CALLED void scale_rows(const float* factors, int64_t count, int64_t latent_dim,
                                  float* values) {
  for (int64_t i = 0; i < count; ++i, values += latent_dim) {
    const __m512 factor = _mm512_set1_ps(factors[i]);
    for (int64_t d = 0; d < latent_dim; d += 16) {
      _mm512_storeu_ps(values + d, _mm512_mul_ps(_mm512_loadu_ps(values + d), factor));
    }
  }
}

// Calls body(std::bool_constant two tiles, first row) for all rows, with tiles of their number.
template <typename Body>
NIBBLE_AMX void for_each_tile(int first, int end, Body&& body) {
  for (int row = first; row < end; row += 2 * kTileRows) {
    const int rows = std::min<int>(end - row, 2 * kTileRows);
    configure_tiles(rows);
    rows > kTileRows ? body(std::true_type(), row) : body(std::false_type(), row);
  }
}

struct Halves {
  uint16_t* queries;  // [n, key_dim]
  uint16_t* p;        // [n, kAttentionBlock]
  uint8_t* keys;      // tiles
  uint8_t* latents;   // tiles
};

// A block of positions from `start` on for the queries from `first` on; `last`: of the span.
NIBBLE_AMX_CALLED void attend_block(const AttentionQueries& queries, int first,
                                    const RecordPages& pages, int64_t start, int64_t last,
                                    const AttentionShape& shape, const AttentionScratch& scratch,
                                    const Halves& halves, const AttentionSums& out) {
  const int64_t size = std::min<int64_t>(last - start, kAttentionBlock);
  const int count = queries.count - first;
  KvRecord records[kAttentionBlock];
  find_records(pages, start, size, records);
  make_key_tiles(records, shape, halves.keys);
  for_each_tile(first, queries.count, [&](auto two_tiles, int q) {
    score_rows<two_tiles()>(halves.queries + q * shape.key_dim, shape.key_dim, halves.keys,
                            scratch.scores + q * kAttentionBlock);
  });
  softmax_block(queries, first, start, shape.scale, scratch, out);
  make_input_row(InputFormat::kBF16, scratch.scores + first * kAttentionBlock, nullptr,
                 int64_t(count) * kAttentionBlock,
                 reinterpret_cast<uint8_t*>(halves.p + first * kAttentionBlock));
  make_latent_tiles(records, shape.latent_dim, halves.latents);
  scale_rows(scratch.factors + first, count, shape.latent_dim,
             out.values + first * shape.latent_dim);
  for_each_tile(first, queries.count, [&](auto two_tiles, int q) {
    add_values<two_tiles()>(halves.p + q * kAttentionBlock, halves.latents, shape.latent_dim,
                            out.values + q * shape.latent_dim);
  });
}

}  // namespace

NIBBLE_AMX_CALLED void attend_span_amx(const AttentionQueries& queries, const RecordPages& pages,
                                       int64_t first, int64_t last, const AttentionShape& shape,
                                       const AttentionScratch& scratch, const AttentionSums& out) {
  auto* const tiles = reinterpret_cast<uint8_t*>(scratch.records);
  const Halves halves{.queries = scratch.halves,
                      .p = scratch.halves + queries.count * shape.key_dim,
                      .keys = tiles,
                      .latents = tiles + 2 * kAttentionBlock * shape.key_dim};
  for (int q = 0; q < queries.count; ++q) {
    make_input_row(InputFormat::kBF16, queries.rows[q], nullptr, shape.key_dim,
                   reinterpret_cast<uint8_t*>(halves.queries + q * shape.key_dim));
    out.top[q] = -std::numeric_limits<float>::infinity();
    out.sum[q] = 0;
  }
  std::fill_n(out.values, queries.count * shape.latent_dim, 0.0f);
  for_each_block(queries, first, last, [&](int q, int64_t start) {
    attend_block(queries, q, pages, start, last, shape, scratch, halves, out);
  });
  _tile_release();
}

}  // namespace nibble

#endif
