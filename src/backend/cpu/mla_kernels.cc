// Absorbed attention: scores of queries [n, 576] against records [m, 576] shared by all heads, an
// online softmax, and the sums of latents.
//
// Per block of 64 positions, aligned to absolute positions:
//   1. scores: tiles of queries by positions, lanes over the 576 values. Records are decoded to
//   FP32
//      8 at a time and scored while they are in the L1 cache
//   2. softmax: 64 scores of a query make one step of its running maximum and sum
//   3. values: tiles of queries by vectors of latent values, positions innermost
// Few queries (one tile) read BF16 records as they are stored: decoding is exact, so it does not
// matter where it happens. Tiles: 10 accumulators with 16 registers, 24 with 32.
//
// Measured on one core of an EPYC (Zen 4) guest with AVX2, of 91 GFLOP/s: 64 queries 73 (80%), 20
// queries 69, 4 queries 69, 2 queries 58, one query 26.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/mla_kernels.cc"
#include "backend/cpu/mla_kernels.h"

#include <cstring>
#include <limits>

#include "base/numbers.h"
#include "hwy/foreach_target.h"  // before simd-inl.h
// clang-format off
#include "backend/cpu/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

constexpr int kMaxSums = kVectorRegisters == 32 ? 24 : 10;
constexpr int kMaxQueries = kVectorRegisters == 32 ? 6 : 5;
constexpr int kPositions = 8;  // decoded at once
constexpr int kValueColumns = kAttentionValueColumns;
static_assert(kValueColumns % kLanes == 0);

constexpr int width_for(int queries) {
  int width = 1;
  while (width < 8 && queries * width * 2 <= kMaxSums) width *= 2;
  return width;
}

// Decoding --------------------------------------------------------------------------------------

HWY_INLINE FloatVec decode_e4m3(WordVec code) {
  const Words words;
  const Floats f;
  const WordVec magnitude = hn::And(code, hn::Set(words, 0x7fu));
  // Bits in place, exponents still 120 too low: the product is exact, subnormals too.
  const FloatVec value = hn::Mul(hn::BitCast(f, hn::ShiftLeft<20>(magnitude)), set(0x1p120f));
  const WordVec sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(words, 0x80u)));
  const FloatVec nan = set(std::numeric_limits<float>::quiet_NaN());
  const auto is_nan = hn::RebindMask(f, hn::Eq(magnitude, hn::Set(words, 0x7fu)));
  return hn::IfThenElse(is_nan, nan, hn::Or(value, hn::BitCast(f, sign)));
}

// `count` integers, whole vectors of them, times a BF16 scale.
HWY_INLINE void decode_int8(const uint8_t* codes, const uint8_t* bf16_scale, int count,
                            float* out) {
  const hn::Rebind<int8_t, Integers> bytes;
  uint16_t scale_bits;
  std::memcpy(&scale_bits, bf16_scale, sizeof(scale_bits));
  const FloatVec scale = set(bf16_to_float(scale_bits));
  for (int i = 0; i < count; i += kLanes) {
    const auto code = hn::LoadU(bytes, reinterpret_cast<const int8_t*>(codes + i));
    const FloatVec value = hn::ConvertTo(Floats(), hn::PromoteTo(Integers(), code));
    store(hn::Mul(value, scale), out + i);
  }
}

#if HWY_TARGET != HWY_SCALAR
// Blocks of 16 E2M1 codes times an E4M3 scale each: a byte's nibbles become two bytes, which are
// looked up as twice the values.
HWY_INLINE void decode_e2m1(const uint8_t* codes, const uint8_t* e4m3, int blocks, float* out) {
  alignas(16) static constexpr int8_t kTwice[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                                    0, -1, -2, -3, -4, -6, -8, -12};
  const hn::FixedTag<uint8_t, 16> bytes;
  const hn::FixedTag<uint16_t, 8> shorts;
  const hn::Rebind<int8_t, Integers> some;
  const auto table = hn::Load(bytes, reinterpret_cast<const uint8_t*>(kTwice));
  for (int b = 0; b < blocks; ++b, codes += 8, out += 16) {
    const auto pairs = hn::PromoteTo(shorts, hn::LoadU(hn::FixedTag<uint8_t, 8>(), codes));
    const auto spread = hn::Or(hn::And(pairs, hn::Set(shorts, uint16_t(15))),
                               hn::ShiftLeft<8>(hn::ShiftRight<4>(pairs)));
    alignas(16) int8_t twice[16];
    hn::Store(hn::TableLookupBytes(table, hn::BitCast(bytes, spread)), bytes,
              reinterpret_cast<uint8_t*>(twice));
    const FloatVec scale = set(e4m3_to_float(e4m3[b]) * 0.5f);
    for (int i = 0; i < 16; i += kLanes) {
      const auto part = hn::PromoteTo(Integers(), hn::LoadU(some, twice + i));
      store(hn::Mul(hn::ConvertTo(Floats(), part), scale), out + i);
    }
  }
}
#endif

// A record with scales; returns its width, or 0 where its parts are no whole vectors.
HWY_INLINE int decode_scaled(const KvLayer& layer, KvRecord record, float* out) {
  const int latent = layer.latent, rope = layer.width - latent;
  if (latent % 16 != 0 || rope % 16 != 0) return 0;
  if (layer.format == KvFormat::kInt8) {
    decode_int8(record.values, record.scales, latent, out);
    decode_int8(record.values + latent, record.scales + 2, rope, out + latent);
    return layer.width;
  }
#if HWY_TARGET == HWY_SCALAR
  return 0;
#else
  const uint8_t* block_scales = record.values + latent / 2;
  decode_e2m1(record.values, block_scales, latent / 16, out);
  decode_int8(block_scales + latent / 16, record.scales, rope, out + latent);
  return layer.width;
#endif
}

// `width` values and zeros up to the padded width.
void decode(const KvLayer& layer, KvRecord record, float* out) {
  const Words words;
  const int width = layer.width;
  int i = 0;
  if (layer.format == KvFormat::kBF16) {
    const uint16_t* from = reinterpret_cast<const uint16_t*>(record.values);
    const hn::Rebind<uint16_t, Words> halves;
    for (; i + kLanes <= width; i += kLanes) {
      store(even_half(hn::PromoteTo(words, hn::LoadU(halves, from + i))), out + i);
    }
  } else if (layer.format == KvFormat::kFp8) {
    const hn::Rebind<uint8_t, Words> bytes;
    for (; i + kLanes <= width; i += kLanes) {
      store(decode_e4m3(hn::PromoteTo(words, hn::LoadU(bytes, record.values + i))), out + i);
    }
  } else if (layer.format == KvFormat::kF32) {
    const float* from = reinterpret_cast<const float*>(record.values);
    for (; i + kLanes <= width; i += kLanes) store(load(from + i), out + i);
  } else {
    i = decode_scaled(layer, record, out);
  }
  if (i < width) decode_record(layer, record, out);
  for (int k = width; k < padded(width); ++k) out[k] = 0;
}

// The records of a block, by position and value.
struct DecodedRecords {
  const float* data;
  int64_t stride;

  HWY_INLINE FloatVec at(int64_t j, int64_t d) const { return load(data + j * stride + d); }
};

struct StoredBf16Records {
  const KvRecord* rows;  // [kAttentionBlock]
  int64_t first;         // of the values at hand

  HWY_INLINE FloatVec at(int64_t j, int64_t d) const {
    const hn::Rebind<uint16_t, Words> halves;
    const uint16_t* row = reinterpret_cast<const uint16_t*>(rows[j].values) + first;
    return even_half(hn::PromoteTo(Words(), hn::LoadU(halves, row + d)));
  }
};

// Scores ----------------------------------------------------------------------------------------

template <int kQueries, int kWidth, typename Records>
HWY_INLINE void score_tile(const float* const* q, const Records& records, int64_t position,
                           int64_t stride, float* scores) {
  FloatVec sum[kQueries][kWidth];
#pragma GCC unroll 8
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) sum[i][j] = zero();
  }
  const float* rows[kQueries];
#pragma GCC unroll 8
  for (int i = 0; i < kQueries; ++i) rows[i] = q[i];
  for (int64_t d = 0; d < stride; d += kLanes) {
    FloatVec c[kWidth];
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) c[j] = in_register(records.at(position + j, d));
#pragma GCC unroll 8
    for (int i = 0; i < kQueries; ++i) {
      const FloatVec x = in_register(load(rows[i] + d));
#pragma GCC unroll 8
      for (int j = 0; j < kWidth; ++j) sum[i][j] = hn::MulAdd(x, c[j], sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) {
      scores[i * kAttentionBlock + j] = sum_of_lanes(sum[i][j]);
    }
  }
}

// kPositions scores of each of `count` queries, from `position` of the block on.
template <typename Records, int kQueries = kMaxQueries>
HWY_INLINE void score_queries(int count, const float* const* q, const Records& records,
                              int64_t position, int64_t stride, float* scores) {
  if (count == kQueries) {
    constexpr int kWidth = width_for(kQueries);
    for (int j = 0; j < kPositions; j += kWidth) {
      score_tile<kQueries, kWidth>(q, records, position + j, stride, scores + j);
    }
  } else if constexpr (kQueries > 1) {
    score_queries<Records, kQueries - 1>(count, q, records, position, stride, scores);
  }
}

// Softmax ---------------------------------------------------------------------------------------

// Turns 64 scores, `seen` of them of positions that the query may see, into e^(score - top) and
// returns the factor e^(old top - top) of the earlier sums.
HWY_INLINE float softmax_step(float* scores, int64_t seen, float scale, float* top, float* sum) {
  for (int64_t j = seen; j < kAttentionBlock; ++j) {
    scores[j] = -std::numeric_limits<float>::infinity();
  }
  FloatVec most = load(scores);
  for (int j = kLanes; j < kAttentionBlock; j += kLanes) most = hn::Max(most, load(scores + j));
  const float block_top = max_of_lanes(most) * scale;
  const float new_top = block_top > *top ? block_top : *top;
  const float factor = hn::GetLane(exp(set(*top - new_top)));
  FloatVec total = zero();
  for (int j = 0; j < kAttentionBlock; j += kLanes) {
    const FloatVec p = exp(hn::Sub(hn::Mul(load(scores + j), set(scale)), set(new_top)));
    store(p, scores + j);
    total = hn::Add(total, p);
  }
  *top = new_top;
  *sum = *sum * factor + sum_of_lanes(total);
  return factor;
}

// Values ----------------------------------------------------------------------------------------

// What the sums of a block need.
struct ValueTile {
  const float* p;        // [queries, kAttentionBlock]
  const float* factors;  // [queries]
  int64_t positions;
  float* values;  // [queries, stride]
  int64_t stride;
};

// values = values * factor + sum over positions of p * latent, for kWidth vectors of columns.
template <int kQueries, int kWidth, typename Records>
HWY_INLINE void value_tile(const ValueTile& tile, const Records& records, int64_t d) {
  FloatVec sum[kQueries][kWidth];
#pragma GCC unroll 8
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kWidth; ++v) {
      sum[i][v] =
          hn::Mul(load(tile.values + i * tile.stride + d + v * kLanes), set(tile.factors[i]));
    }
  }
  for (int64_t j = 0; j < tile.positions; ++j) {
    FloatVec c[kWidth];
#pragma GCC unroll 8
    for (int v = 0; v < kWidth; ++v) c[v] = in_register(records.at(j, d + v * kLanes));
#pragma GCC unroll 8
    for (int i = 0; i < kQueries; ++i) {
      const FloatVec x = set(tile.p[i * kAttentionBlock + j]);
#pragma GCC unroll 8
      for (int v = 0; v < kWidth; ++v) sum[i][v] = hn::MulAdd(x, c[v], sum[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kWidth; ++v) {
      store(sum[i][v], tile.values + i * tile.stride + d + v * kLanes);
    }
  }
}

// The columns [first, last) of kQueries queries.
template <int kQueries, typename Records, int kWidth = width_for(kQueries)>
HWY_INLINE void value_columns(const ValueTile& tile, const Records& records, int64_t first,
                              int64_t last) {
  int64_t d = first;
  for (; d + kWidth * kLanes <= last; d += kWidth * kLanes) {
    value_tile<kQueries, kWidth>(tile, records, d);
  }
  if constexpr (kWidth > 1) {
    if (d < last) value_columns<kQueries, Records, kWidth / 2>(tile, records, d, last);
  }
}

template <typename Records, int kQueries = kMaxQueries>
HWY_INLINE void value_queries(int count, const ValueTile& tile, const Records& records,
                              int64_t first, int64_t last) {
  if (count == kQueries) {
    value_columns<kQueries>(tile, records, first, last);
  } else if constexpr (kQueries > 1) {
    value_queries<Records, kQueries - 1>(count, tile, records, first, last);
  }
}

// Decodes the block's records from j on, kPositions of them.
HWY_INLINE void decode_some(const KvLayer& layer, const KvRecord* rows, int64_t j, float* records) {
  for (int64_t i = j; i < j + kPositions; ++i) {
    decode(layer, rows[i], records + i * padded(layer.width));
  }
}

// Fetches those that follow: pages lie apart, and a machine foresees none of them.
HWY_INLINE void prefetch_some(const KvRecord* rows, int64_t bytes) {
  for (int64_t i = 0; i < kPositions; ++i) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(rows[i].values + at, 0, 3);
  }
}

void softmax(const AttentionQueries& queries, int first, int64_t start, float scale,
             const AttentionScratch& scratch, const AttentionSums& out) {
  for (int q = first; q < queries.count; ++q) {
    const int64_t seen = queries.positions[q] + 1 - start;
    scratch.factors[q] = softmax_step(scratch.scores + q * kAttentionBlock,
                                      seen < kAttentionBlock ? seen : kAttentionBlock, scale,
                                      out.top + q, out.sum + q);
  }
}

HWY_INLINE ValueTile value_tile_of(int q, int64_t size, const AttentionScratch& scratch,
                                   const AttentionSums& out, int latent_dim) {
  return {.p = scratch.scores + q * kAttentionBlock,
          .factors = scratch.factors + q,
          .positions = size,
          .values = out.values + q * padded(latent_dim),
          .stride = padded(latent_dim)};
}

// A block of positions [start, start + size) for the queries from `first` on: one tile of them.
void attend_block_of_few(const AttentionQueries& queries, int first, const KvRecord* rows,
                         int64_t start, int64_t size, const AttentionShape& shape,
                         const AttentionScratch& scratch, const AttentionSums& out) {
  const StoredBf16Records records{rows, 0}, keys{rows, shape.key_first};
  const int count = queries.count - first;
  for (int64_t j = 0; j < size; j += kPositions) {
    score_queries(count, queries.rows + first, keys, j, shape.key_dim,
                  scratch.scores + first * kAttentionBlock + j);
  }
  softmax(queries, first, start, shape.scale, scratch, out);
  value_queries(count, value_tile_of(first, size, scratch, out, shape.latent_dim), records, 0,
                shape.latent_dim);
}

// The same for any number of queries.
void attend_block(const AttentionQueries& queries, int first, const KvLayer& layer,
                  const KvRecord* rows, int64_t start, int64_t size, const AttentionShape& shape,
                  const AttentionScratch& scratch, const AttentionSums& out) {
  const int64_t stride = padded(shape.record_dim()), columns = padded(shape.latent_dim);
  const DecodedRecords records{scratch.records, stride};
  const DecodedRecords keys{scratch.records + shape.key_first, stride};
  const int count = queries.count - first;
  const int64_t value_bytes = kv_value_bytes(layer);
  const int tiles = (count + kMaxQueries - 1) / kMaxQueries;
  const auto tile_start = [&](int t) { return first + count * t / tiles; };
  for (int64_t j = 0; j < size; j += kPositions) {
    decode_some(layer, rows, j, scratch.records);
    if (j + kPositions < size) prefetch_some(rows + j + kPositions, value_bytes);
    for (int t = 0; t < tiles; ++t) {
      const int q = tile_start(t);
      score_queries(tile_start(t + 1) - q, queries.rows + q, keys, j, padded(shape.key_dim),
                    scratch.scores + q * kAttentionBlock + j);
    }
  }
  softmax(queries, first, start, shape.scale, scratch, out);
  for (int64_t d = 0; d < columns; d += kValueColumns) {
    for (int t = 0; t < tiles; ++t) {
      const int q = tile_start(t);
      value_queries(tile_start(t + 1) - q, value_tile_of(q, size, scratch, out, shape.latent_dim),
                    records, d, d + kValueColumns < columns ? d + kValueColumns : columns);
    }
  }
}

void attend(const AttentionQueries& queries, const RecordPages& pages, int64_t first, int64_t last,
            const AttentionShape& shape, const AttentionScratch& scratch,
            const AttentionSums& out) {
  for (int q = 0; q < queries.count; ++q) {
    out.top[q] = -std::numeric_limits<float>::infinity();
    out.sum[q] = 0;
    float* values = out.values + q * padded(shape.latent_dim);
    for (int64_t d = 0; d < padded(shape.latent_dim); ++d) values[d] = 0;
  }
  const KvFormat format = pages.cache.format;
  const bool few = format == KvFormat::kBF16 && queries.count <= kMaxQueries &&
                   padded(shape.key_dim) == shape.key_dim &&
                   padded(shape.latent_dim) == shape.latent_dim;
  for_each_block(queries, first, last, [&](int q, int64_t start) {
    KvRecord rows[kAttentionBlock];
    const int64_t size = last - start < kAttentionBlock ? last - start : kAttentionBlock;
    find_records(pages, start, size, rows);
    if (few) {
      attend_block_of_few(queries, q, rows, start, size, shape, scratch, out);
    } else {
      attend_block(queries, q, pages.cache, rows, start, size, shape, scratch, out);
    }
  });
}

void merge(const AttentionSums& sums, int64_t i, const AttentionSums& more, int64_t j,
           int latent_dim) {
  const float top = sums.top[i] > more.top[j] ? sums.top[i] : more.top[j];
  const float a = hn::GetLane(exp(set(sums.top[i] - top)));
  const float b = hn::GetLane(exp(set(more.top[j] - top)));
  sums.top[i] = top;
  sums.sum[i] = sums.sum[i] * a + more.sum[j] * b;
  float* to = sums.values + i * padded(latent_dim);
  const float* from = more.values + j * padded(latent_dim);
  for (int64_t d = 0; d < padded(latent_dim); d += kLanes) {
    store(hn::MulAdd(load(to + d), set(a), hn::Mul(load(from + d), set(b))), to + d);
  }
}

void finish(const AttentionSums& sums, int64_t i, int latent_dim, float* out) {
  const FloatVec factor = set(1.0f / sums.sum[i]);
  const float* values = sums.values + i * padded(latent_dim);
  for (int64_t d = 0; d < padded(latent_dim); d += kLanes) {
    store(hn::Mul(load(values + d), factor), out + d);
  }
}

// Encoding --------------------------------------------------------------------------------------

HWY_INLINE WordVec encode_e4m3(FloatVec x) {
  const Words words;
  const WordVec bits = hn::BitCast(words, x);
  const WordVec sign = hn::And(hn::ShiftRight<24>(bits), hn::Set(words, 0x80u));
  const FloatVec magnitude = hn::Abs(x);
  const FloatVec capped = hn::Min(magnitude, set(448.0f));
  const WordVec normal =
      hn::Sub(round_off<20>(hn::BitCast(words, capped)), hn::Set(words, 120u << 3));
  // Below 2^-6 a step is 2^-9, which is the last bit of 2^14 + x.
  const WordVec small =
      hn::Sub(hn::BitCast(words, hn::Add(capped, set(0x1p14f))), hn::BitCast(words, set(0x1p14f)));
  const auto is_small = hn::RebindMask(words, hn::Lt(capped, set(0x1p-6f)));
  const WordVec code = hn::IfThenElse(is_small, small, normal);
  const auto is_nan = hn::RebindMask(words, hn::IsNaN(x));
  return hn::Or(sign, hn::IfThenElse(is_nan, hn::Set(words, 0x7fu), code));
}

void encode(const KvLayer& layer, const float* values, KvRecord record) {
  const Integers integers;
  int i = 0;
  uint8_t* const to = record.values;
  const int width = layer.width;
  if (layer.format == KvFormat::kBF16) {
    const hn::Rebind<uint16_t, Words> halves;
    for (; i + kLanes <= width; i += kLanes) {
      const auto bits = hn::BitCast(integers, encode_bf16(load(values + i)));
      hn::StoreU(hn::DemoteTo(halves, bits), halves, reinterpret_cast<uint16_t*>(to) + i);
    }
  } else if (layer.format == KvFormat::kFp8) {
    const hn::Rebind<uint8_t, Words> bytes;
    for (; i + kLanes <= width; i += kLanes) {
      const auto code = hn::BitCast(integers, encode_e4m3(load(values + i)));
      hn::StoreU(hn::DemoteTo(bytes, code), bytes, to + i);
    }
  }
  if (i < width) encode_record(layer, values, record);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(attend);
HWY_EXPORT(softmax);
HWY_EXPORT(merge);
HWY_EXPORT(finish);
HWY_EXPORT(encode);
HWY_EXPORT(decode);

void attend_span(const AttentionQueries& queries, const RecordPages& pages, int64_t first,
                 int64_t last, const AttentionShape& shape, const AttentionScratch& scratch,
                 const AttentionSums& out) {
  HWY_DYNAMIC_DISPATCH(attend)(queries, pages, first, last, shape, scratch, out);
}

SpanFunction* span_function([[maybe_unused]] AttentionProducts products,
                            [[maybe_unused]] KvFormat format,
                            [[maybe_unused]] const AttentionShape& shape) {
#if defined(__x86_64__)
  if (products == AttentionProducts::kBF16Tiles && format == KvFormat::kBF16 &&
      shape.key_dim % 32 == 0 && shape.latent_dim % 32 == 0) {
    return attend_span_amx;
  }
  if (products == AttentionProducts::kBF16Dots && format != KvFormat::kF32 &&
      shape.key_dim % 32 == 0 && shape.latent_dim % kAttentionValueColumns == 0) {
    return attend_span_avx512bf16;
  }
#endif
  return attend_span;
}

void softmax_block(const AttentionQueries& queries, int first, int64_t start, float scale,
                   const AttentionScratch& scratch, const AttentionSums& out) {
  HWY_DYNAMIC_DISPATCH(softmax)(queries, first, start, scale, scratch, out);
}

void find_records(const RecordPages& pages, int64_t start, int64_t size, KvRecord* records) {
  const int64_t value_bytes = kv_value_bytes(pages.cache);
  const int64_t scale_bytes = kv_scale_bytes(pages.cache);
  int64_t slot = start % pages.cache.page_size;
  KvRecord record = pages.at(start);
  for (int64_t j = 0; j < size; ++j, ++slot) {
    if (slot == pages.cache.page_size) slot = 0, record = pages.at(start + j);
    records[j] = record;
    record.values += value_bytes;
    record.scales += scale_bytes;
  }
  for (int64_t j = size; j < kAttentionBlock; ++j) records[j] = records[size - 1];
}

void merge_sums(const AttentionSums& sums, int64_t i, const AttentionSums& more, int64_t j,
                int latent_dim) {
  HWY_DYNAMIC_DISPATCH(merge)(sums, i, more, j, latent_dim);
}

void finish_sums(const AttentionSums& sums, int64_t i, int latent_dim, float* out) {
  HWY_DYNAMIC_DISPATCH(finish)(sums, i, latent_dim, out);
}

void encode_record_fast(const KvLayer& layer, const float* values, KvRecord record) {
  HWY_DYNAMIC_DISPATCH(encode)(layer, values, record);
}

void decode_record_fast(const KvLayer& layer, KvRecord record, float* values) {
  HWY_DYNAMIC_DISPATCH(decode)(layer, record, values);
}

}  // namespace nibble
#endif
