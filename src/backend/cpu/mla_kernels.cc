// Absorbed attention: scores of queries [n, 576] against records [m, 576] shared by all heads, an
// online softmax, and the sums of latents.
//
// Per block of 64 positions, aligned to absolute positions:
//   1. records are decoded to FP32, 8 at a time, and scored while they are in the L1 cache: a tile
//      of up to 6 queries by 2 positions (4 with 32 registers), lanes over the 576 values
//   2. softmax: 64 scores of a query make one step of its running maximum and sum
//   3. values: a tile of queries by vectors of 64 latent values at a time, positions innermost
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/mla_kernels.cc"
#include "backend/cpu/mla_kernels.h"

#include <limits>

#include "hwy/foreach_target.h"  // before simd-inl.h
// clang-format off
#include "backend/cpu/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

constexpr int kMaxSums = kVectorRegisters == 32 ? 24 : 12;
constexpr int kMaxQueries = 6;
constexpr int kPositions = 8;      // decoded at once
constexpr int kValueColumns = 64;  // of the latent, summed at once
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

// `width` values and zeros up to the padded width.
HWY_INLINE void decode(KvFormat format, const uint8_t* record, int width, float* out) {
  const Words words;
  int i = 0;
  if (format == KvFormat::kBF16) {
    const uint16_t* from = reinterpret_cast<const uint16_t*>(record);
    const hn::Rebind<uint16_t, Words> halves;
    for (; i + kLanes <= width; i += kLanes) {
      const WordVec bits = hn::PromoteTo(words, hn::LoadU(halves, from + i));
      store(hn::BitCast(Floats(), hn::ShiftLeft<16>(bits)), out + i);
    }
  } else if (format == KvFormat::kFp8) {
    const hn::Rebind<uint8_t, Words> bytes;
    for (; i + kLanes <= width; i += kLanes) {
      store(decode_e4m3(hn::PromoteTo(words, hn::LoadU(bytes, record + i))), out + i);
    }
  } else {
    const float* from = reinterpret_cast<const float*>(record);
    for (; i + kLanes <= width; i += kLanes) store(load(from + i), out + i);
  }
  if (i < width) {
    const int64_t bytes = kv_record_bytes(format, 1);
    decode_record(format, record + i * bytes, width - i, out + i);
  }
  for (int k = width; k < padded(width); ++k) out[k] = 0;
}

// Scores ----------------------------------------------------------------------------------------

template <int kQueries, int kWidth>
HWY_INLINE void score_tile(const float* const* q, const float* records, int64_t stride,
                           float* scores) {
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
    for (int j = 0; j < kWidth; ++j) c[j] = load(records + j * stride + d);
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

// kPositions scores of each of `count` queries.
template <int kQueries = kMaxQueries>
HWY_INLINE void score_queries(int count, const float* const* q, const float* records,
                              int64_t stride, float* scores) {
  if (count == kQueries) {
    constexpr int kWidth = width_for(kQueries);
    for (int j = 0; j < kPositions; j += kWidth) {
      score_tile<kQueries, kWidth>(q, records + j * stride, stride, scores + j);
    }
  } else if constexpr (kQueries > 1) {
    score_queries<kQueries - 1>(count, q, records, stride, scores);
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

// values = values * factor + sum over positions of p * latent, for kWidth vectors of columns.
template <int kQueries, int kWidth>
HWY_INLINE void value_tile(const float* p, const float* factors, const float* records,
                           int64_t stride, int64_t positions, int64_t value_stride, float* values) {
  FloatVec sum[kQueries][kWidth];
#pragma GCC unroll 8
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kWidth; ++v) {
      sum[i][v] = hn::Mul(load(values + i * value_stride + v * kLanes), set(factors[i]));
    }
  }
  for (int64_t j = 0; j < positions; ++j) {
    FloatVec c[kWidth];
#pragma GCC unroll 8
    for (int v = 0; v < kWidth; ++v) c[v] = load(records + j * stride + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kQueries; ++i) {
      const FloatVec x = set(p[i * kAttentionBlock + j]);
#pragma GCC unroll 8
      for (int v = 0; v < kWidth; ++v) sum[i][v] = hn::MulAdd(x, c[v], sum[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kWidth; ++v) store(sum[i][v], values + i * value_stride + v * kLanes);
  }
}

template <int kQueries, int kWidth = width_for(kQueries)>
HWY_INLINE void value_columns(const float* p, const float* factors, const float* records,
                              int64_t stride, int64_t positions, int64_t columns,
                              int64_t value_stride, float* values) {
  int64_t d = 0;
  for (; d + kWidth * kLanes <= columns; d += kWidth * kLanes) {
    value_tile<kQueries, kWidth>(p, factors, records + d, stride, positions, value_stride,
                                 values + d);
  }
  if constexpr (kWidth > 1) {
    if (d < columns) {
      value_columns<kQueries, kWidth / 2>(p, factors, records + d, stride, positions, columns - d,
                                          value_stride, values + d);
    }
  }
}

template <int kQueries = kMaxQueries>
HWY_INLINE void value_queries(int count, const float* p, const float* factors, const float* records,
                              int64_t stride, int64_t positions, int64_t columns,
                              int64_t value_stride, float* values) {
  if (count == kQueries) {
    value_columns<kQueries>(p, factors, records, stride, positions, columns, value_stride, values);
  } else if constexpr (kQueries > 1) {
    value_queries<kQueries - 1>(count, p, factors, records, stride, positions, columns,
                                value_stride, values);
  }
}

// A block of positions [start, start + size) for the queries from `first` on.
void attend_block(const AttentionQueries& queries, int first, const RecordPages& pages,
                  int64_t start, int64_t size, const AttentionShape& shape,
                  const AttentionScratch& scratch, const AttentionSums& out) {
  const int64_t stride = padded(shape.record_dim), value_stride = padded(shape.latent_dim);
  const int count = queries.count - first;
  const int tiles = (count + kMaxQueries - 1) / kMaxQueries;
  for (int64_t j = 0; j < size; j += kPositions) {
    float* records = scratch.records + j * stride;
    for (int64_t i = 0; i < kPositions; ++i) {
      if (j + i < size) {
        decode(pages.cache.format, pages.at(start + j + i), shape.record_dim, records + i * stride);
      } else {
        for (int64_t d = 0; d < stride; ++d) records[i * stride + d] = 0;
      }
    }
    for (int t = 0; t < tiles; ++t) {
      const int q = first + count * t / tiles, end = first + count * (t + 1) / tiles;
      score_queries(end - q, queries.rows + q, records, stride,
                    scratch.scores + q * kAttentionBlock + j);
    }
  }
  for (int q = first; q < queries.count; ++q) {
    const int64_t seen = queries.positions[q] + 1 - start;
    scratch.factors[q] = softmax_step(scratch.scores + q * kAttentionBlock,
                                      seen < kAttentionBlock ? seen : kAttentionBlock, shape.scale,
                                      out.top + q, out.sum + q);
  }
  for (int64_t d = 0; d < value_stride; d += kValueColumns) {
    const int64_t columns = d + kValueColumns < value_stride ? kValueColumns : value_stride - d;
    for (int t = 0; t < tiles; ++t) {
      const int q = first + count * t / tiles, end = first + count * (t + 1) / tiles;
      value_queries(end - q, scratch.scores + q * kAttentionBlock, scratch.factors + q,
                    scratch.records + d, stride, size, columns, value_stride,
                    out.values + q * value_stride + d);
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
  int q = 0;
  for (int64_t start = first; start < last; start += kAttentionBlock) {
    while (q < queries.count && queries.positions[q] < start) ++q;
    const int64_t size = last - start < kAttentionBlock ? last - start : kAttentionBlock;
    attend_block(queries, q, pages, start, size, shape, scratch, out);
  }
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

// Adds half of the last kept bit's weight, to even.
template <int kShift>
HWY_INLINE WordVec round_off(WordVec bits) {
  const Words words;
  const WordVec last = hn::And(hn::ShiftRight<kShift>(bits), hn::Set(words, 1u));
  const WordVec half = hn::Set(words, (1u << (kShift - 1)) - 1);
  return hn::ShiftRight<kShift>(hn::Add(bits, hn::Add(half, last)));
}

HWY_INLINE WordVec encode_bf16(FloatVec x) {
  const Words words;
  const WordVec bits = hn::BitCast(words, x);
  const WordVec quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(words, 0x40u));
  return hn::IfThenElse(hn::RebindMask(words, hn::Ne(x, x)), quiet, round_off<16>(bits));
}

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
  const auto is_nan = hn::RebindMask(words, hn::Ne(x, x));
  return hn::Or(sign, hn::IfThenElse(is_nan, hn::Set(words, 0x7fu), code));
}

void encode(KvFormat format, const float* values, int width, void* record) {
  const Integers integers;
  int i = 0;
  uint8_t* to = static_cast<uint8_t*>(record);
  if (format == KvFormat::kBF16) {
    const hn::Rebind<uint16_t, Words> halves;
    for (; i + kLanes <= width; i += kLanes) {
      const auto bits = hn::BitCast(integers, encode_bf16(load(values + i)));
      hn::StoreU(hn::DemoteTo(halves, bits), halves, reinterpret_cast<uint16_t*>(to) + i);
    }
  } else if (format == KvFormat::kFp8) {
    const hn::Rebind<uint8_t, Words> bytes;
    for (; i + kLanes <= width; i += kLanes) {
      const auto code = hn::BitCast(integers, encode_e4m3(load(values + i)));
      hn::StoreU(hn::DemoteTo(bytes, code), bytes, to + i);
    }
  }
  encode_record(format, values + i, width - i, to + i * kv_record_bytes(format, 1));
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(attend);
HWY_EXPORT(merge);
HWY_EXPORT(finish);
HWY_EXPORT(encode);

void attend_span(const AttentionQueries& queries, const RecordPages& pages, int64_t first,
                 int64_t last, const AttentionShape& shape, const AttentionScratch& scratch,
                 const AttentionSums& out) {
  HWY_DYNAMIC_DISPATCH(attend)(queries, pages, first, last, shape, scratch, out);
}

void merge_sums(const AttentionSums& sums, int64_t i, const AttentionSums& more, int64_t j,
                int latent_dim) {
  HWY_DYNAMIC_DISPATCH(merge)(sums, i, more, j, latent_dim);
}

void finish_sums(const AttentionSums& sums, int64_t i, int latent_dim, float* out) {
  HWY_DYNAMIC_DISPATCH(finish)(sums, i, latent_dim, out);
}

void encode_record_fast(KvFormat format, const float* values, int width, void* record) {
  HWY_DYNAMIC_DISPATCH(encode)(format, values, width, record);
}

}  // namespace nibble
#endif
