#include "backend/cpu/mla_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "backend/cpu/instruction_sets.h"
#include "backend/cpu/memory.h"
#include "backend/cpu/records.h"
#include "backend/cpu/test_targets.h"
#include "base/numbers.h"

namespace nibble {
namespace {

// Sums of one query over all records, in double.
void expect_sums(const std::vector<float>& records, const float* q, int64_t count, int width,
                 int latent, float scale, float top, float sum, const float* values) {
  std::vector<double> scores;
  for (int64_t t = 0; t < count; ++t) {
    double score = 0;
    for (int d = 0; d < width; ++d) score += double(q[d]) * records[size_t(t * width + d)];
    scores.push_back(score * double(scale));
  }
  const double best = *std::max_element(scores.begin(), scores.end());
  ASSERT_NEAR(top, best, 1e-4);
  double total = 0;
  std::vector<double> want(size_t(latent), 0.0);
  for (int64_t t = 0; t < count; ++t) {
    const double p = std::exp(scores[size_t(t)] - best);
    total += p;
    for (int d = 0; d < latent; ++d) want[size_t(d)] += p * records[size_t(t * width + d)];
  }
  ASSERT_NEAR(sum, total, 1e-4 * total);
  for (int d = 0; d < latent; ++d) ASSERT_NEAR(values[d], want[size_t(d)], 1e-3 * total);
}

TEST(Attention, SumsAreRightForAnyNumberOfQueries) {
  constexpr int kWidth = 48, kLatent = 32, kRecords = 150;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const KvFormat format :
       {KvFormat::kF32, KvFormat::kBF16, KvFormat::kFp8, KvFormat::kInt8, KvFormat::kNvfp4}) {
    KvLayer cache{.format = format, .page_size = 7, .width = kWidth, .latent = kLatent};
    std::vector<int32_t> pages;
    for (int p = 21; p >= 0; --p) pages.push_back(p);
    std::vector<uint8_t> memory(size_t(kv_page_bytes(cache) * 22));
    cache.data = memory.data();
    const RecordPages at{cache, pages.data()};
    std::vector<float> records(kRecords * kWidth);
    for (int t = 0; t < kRecords; ++t) {
      float* record = records.data() + t * kWidth;
      for (int d = 0; d < kWidth; ++d) record[d] = normal(random);
      encode_record(cache, record, at.at(t));
      decode_record(cache, at.at(t), record);
    }
    for (const int count : {1, 2, 3, 4, 5, 6, 11}) {
      std::vector<float> q(size_t(count * kWidth));
      for (float& v : q) v = normal(random);
      std::vector<const float*> rows;
      std::vector<int64_t> positions;
      for (int i = 0; i < count; ++i) {
        rows.push_back(q.data() + i * kWidth);
        positions.push_back(kRecords - count + i);
      }
      std::vector<float> tile(kAttentionBlock * kWidth), scores(size_t(count * kAttentionBlock)),
          factors(rows.size()), top(rows.size()), sum(rows.size()), values(size_t(count * kLatent));
      for_each_target([&](int64_t) {
        attend_span({.rows = rows.data(), .positions = positions.data(), .count = count}, at, 0,
                    kRecords, {.key_dim = kWidth, .latent_dim = kLatent, .scale = 0.2f},
                    {.records = tile.data(), .scores = scores.data(), .factors = factors.data()},
                    {.top = top.data(), .sum = sum.data(), .values = values.data()});
        for (int i = 0; i < count; ++i) {
          expect_sums(records, rows[size_t(i)], positions[size_t(i)] + 1, kWidth, kLatent, 0.2f,
                      top[size_t(i)], sum[size_t(i)], values.data() + i * kLatent);
        }
      });
    }
  }
}

#if defined(__x86_64__)

// Sums of some queries, each of which sees one record more than the one before.
struct Sums {
  std::vector<float> top, sum, values;
};
Sums sums_of(SpanFunction* attend, const RecordPages& pages, const AttentionShape& shape,
             const std::vector<const float*>& rows, int64_t first_position) {
  const size_t count = rows.size();
  std::vector<int64_t> positions;
  for (size_t i = 0; i < count; ++i) positions.push_back(first_position + int64_t(i));
  Scratch<float> records;
  std::vector<float> scores(count * kAttentionBlock), factors(count);
  std::vector<uint16_t> halves(count * size_t(shape.key_dim + kAttentionBlock));
  Sums sums{std::vector<float>(count), std::vector<float>(count),
            std::vector<float>(count * size_t(shape.latent_dim))};
  attend({.rows = rows.data(), .positions = positions.data(), .count = int(count)}, pages, 0,
         positions.back() + 1, shape,
         {.records = records.fit(size_t(kAttentionBlock * shape.record_dim())),
          .scores = scores.data(),
          .factors = factors.data(),
          .halves = halves.data()},
         {.top = sums.top.data(), .sum = sums.sum.data(), .values = sums.values.data()});
  return sums;
}

// Queries that are BF16: all that tiles round are the probabilities.
TEST(Attention, TilesSumAsFloatsDoForAnyNumberOfQueries) {
  if (!instruction_sets().amx_bf16) GTEST_SKIP() << "no AMX here";
  const AttentionShape shape{.key_first = 32, .key_dim = 96, .latent_dim = 64, .scale = 0.1f};
  constexpr int kRecords = 150;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  KvLayer cache{.format = KvFormat::kBF16, .page_size = 7, .width = shape.record_dim()};
  cache.latent = cache.width;
  std::vector<int32_t> page_ids;
  for (int p = 21; p >= 0; --p) page_ids.push_back(p);
  std::vector<uint8_t> memory(size_t(kv_page_bytes(cache) * 22));
  cache.data = memory.data();
  const RecordPages pages{cache, page_ids.data()};
  std::vector<float> record(size_t(cache.width)), q(size_t(64 * shape.key_dim));
  for (int t = 0; t < kRecords; ++t) {
    for (float& v : record) v = normal(random);
    encode_record(cache, record.data(), pages.at(t));
  }
  for (float& v : q) v = bf16_to_float(float_to_bf16(normal(random)));
  for (const int count : {1, 15, 16, 17, 32, 33, 64}) {
    std::vector<const float*> rows;
    for (int i = 0; i < count; ++i) rows.push_back(q.data() + i * shape.key_dim);
    const Sums want = sums_of(attend_span, pages, shape, rows, kRecords - count);
    const Sums got = sums_of(attend_span_amx, pages, shape, rows, kRecords - count);
    for (size_t i = 0; i < size_t(count); ++i) {
      ASSERT_NEAR(got.top[i], want.top[i], 1e-4);
      ASSERT_NEAR(got.sum[i], want.sum[i], 1e-4f * want.sum[i]);
      const Sums alone =
          sums_of(attend_span_amx, pages, shape, {rows[i]}, kRecords - count + int64_t(i));
      for (size_t d = 0; d < size_t(shape.latent_dim); ++d) {
        const size_t at = i * size_t(shape.latent_dim) + d;
        // Half a step of BF16 of each probability, by values of a few.
        ASSERT_NEAR(got.values[at], want.values[at], 5 * 0x1p-9f * want.sum[i]);
        ASSERT_EQ(got.values[at], alone.values[d]) << count << " queries, " << i;
      }
    }
  }
}

#endif

}  // namespace
}  // namespace nibble
