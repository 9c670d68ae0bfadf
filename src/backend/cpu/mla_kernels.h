// The vector part of mla_attention: queries against a span of cached records.
#pragma once

#include <cstdint>

#include "backend/cpu/records.h"

namespace nibble {

inline constexpr int kAttentionBlock = 64;  // positions a step of the online softmax
inline constexpr int kAttentionSpan = 512;  // positions that are summed before they are merged
inline constexpr int kAttentionValueColumns = 64;  // of the latent, summed at once

// Values of a row of `dim` floats in memory: rounded up, so that vectors need no tail.
constexpr int64_t padded(int64_t dim) {
  return (dim + 15) / 16 * 16;
}

// Softmax sums of some queries over some positions: of query i
//   top[i] = max score, sum[i] = sum e^(score - top), values[i] = sum e^(score - top) * latent.
struct AttentionSums {
  float* top = nullptr;     // [n]
  float* sum = nullptr;     // [n]
  float* values = nullptr;  // [n, padded(latent_dim)]
};

struct AttentionQueries {
  const float* const* rows = nullptr;  // [n] -> [padded(key_dim)], zeros at the end
  const int64_t* positions = nullptr;  // [n], not falling: the last record a query may see
  int count = 0;
};

// Of a record: the values that are summed are its first latent_dim, the key that queries are
// multiplied by is the key_dim from key_first on (a multiple of 16) to its end.
struct AttentionShape {
  int key_first = 0;
  int key_dim = 0;
  int latent_dim = 0;
  float scale = 0;

  int record_dim() const { return key_first + key_dim; }
};

// Memory of one thread.
struct AttentionScratch {
  float* records = nullptr;  // [kAttentionBlock, padded(record_dim())], or so many halves
  float* scores = nullptr;   // [n, kAttentionBlock]
  float* factors = nullptr;  // [n]
  // With BF16 products: [n, key_dim + kAttentionBlock], and with dots kAttentionBlock records'
  // kAttentionValueColumns columns.
  uint16_t* halves = nullptr;
};

// Sums over the positions [first, last) that a query may see; `first` is a multiple of
// kAttentionBlock. A query's sums depend on its own position only. A query that sees nothing gets
// top -infinity and zeros.
void attend_span(const AttentionQueries& queries, const RecordPages& pages, int64_t first,
                 int64_t last, const AttentionShape& shape, const AttentionScratch& scratch,
                 const AttentionSums& out);

using SpanFunction = decltype(attend_span);

// The same by BF16 products: queries and probabilities are rounded. Any records but FP32 ones,
// key_dim a multiple of 32, latent_dim of kAttentionValueColumns; BF16 ones where key_first is not
// 0.
void attend_span_avx512bf16(const AttentionQueries& queries, const RecordPages& pages,
                            int64_t first, int64_t last, const AttentionShape& shape,
                            const AttentionScratch& scratch, const AttentionSums& out);

// The same by BF16 tiles, of BF16 records: key_dim and latent_dim multiples of 32.
void attend_span_amx(const AttentionQueries& queries, const RecordPages& pages, int64_t first,
                     int64_t last, const AttentionShape& shape, const AttentionScratch& scratch,
                     const AttentionSums& out);

// A record (neither BF16 nor FP32) as BF16 values, which times the scales of the latent and of the
// rope part are what it stores, exactly.
void convert_record_avx512bf16(const KvLayer& layer, KvRecord record, uint16_t* out,
                               float* latent_scale, float* rope_scale);

// The products that a machine is fast with and attention may use: all but kF32 round queries and
// probabilities to BF16.
enum class AttentionProducts : uint8_t { kF32, kBF16Dots, kBF16Tiles };

// The one of them for these records.
SpanFunction* span_function(AttentionProducts products, KvFormat format,
                            const AttentionShape& shape);

// The addresses of the records [start, start + size), the last one repeated up to a whole block.
void find_records(const RecordPages& pages, int64_t start, int64_t size, KvRecord* records);

// Calls body(first query, start) for the blocks from `first` on up to `last`, with the first of the
// queries that may see any of the block's records.
template <typename Body>
void for_each_block(const AttentionQueries& queries, int64_t first, int64_t last, Body&& body) {
  int q = 0;
  for (int64_t start = first; start < last; start += kAttentionBlock) {
    while (q < queries.count && queries.positions[q] < start) ++q;
    body(q, start);
  }
}

// A step of the softmax of the queries from `first` on over the scores of the block at `start`:
// turns them into e^(score - top), and sets the factors of the earlier sums.
void softmax_block(const AttentionQueries& queries, int first, int64_t start, float scale,
                   const AttentionScratch& scratch, const AttentionSums& out);

// Merges the sums of query `j` of `more`, of later positions, into query `i` of `sums`.
void merge_sums(const AttentionSums& sums, int64_t i, const AttentionSums& more, int64_t j,
                int latent_dim);

// out = values[i] / sum[i]
void finish_sums(const AttentionSums& sums, int64_t i, int latent_dim, float* out);

}  // namespace nibble
