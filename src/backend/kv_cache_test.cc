#include "backend/kv_cache.h"

#include <gtest/gtest.h>

#include <vector>

namespace nibble {
namespace {

TEST(KvCache, RecordsHoldTheirFormatsValues) {
  const std::vector<float> values = {0.0f, 1.0f, -2.5f, 448.0f, 0.3f, -1000.0f};
  std::vector<float> back(values.size());
  std::vector<uint8_t> record(values.size() * 4);

  encode_record(KvFormat::kF32, values.data(), 6, record.data());
  decode_record(KvFormat::kF32, record.data(), 6, back.data());
  EXPECT_EQ(back, values);

  encode_record(KvFormat::kBF16, values.data(), 6, record.data());
  decode_record(KvFormat::kBF16, record.data(), 6, back.data());
  EXPECT_EQ(back, (std::vector<float>{0, 1, -2.5f, 448, 0.30078125f, -1000}));

  encode_record(KvFormat::kFp8, values.data(), 6, record.data());
  decode_record(KvFormat::kFp8, record.data(), 6, back.data());
  EXPECT_EQ(back, (std::vector<float>{0, 1, -2.5f, 448, 0.3125f, -448}));
}

TEST(KvCache, PagesAreWholeRecords) {
  EXPECT_EQ(kv_record_bytes(KvFormat::kBF16, 576), 1152);
  EXPECT_EQ(kv_record_bytes(KvFormat::kFp8, 576), 576);
  EXPECT_EQ(kv_page_bytes({.format = KvFormat::kFp8, .page_size = 16, .width = 576}), 16 * 576);
}

}  // namespace
}  // namespace nibble
