#include "backend/kv_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace nibble {
namespace {

std::vector<float> stored(KvLayer layer, const std::vector<float>& values) {
  std::vector<uint8_t> page(size_t(kv_page_bytes(layer)), 0xee);
  layer.data = page.data();
  const KvRecord record = kv_record(layer, 0, layer.page_size - 1);
  encode_record(layer, values.data(), record);
  std::vector<float> back(values.size());
  decode_record(layer, record, back.data());
  return back;
}

KvLayer layer_of(KvFormat format, int width, int latent, int page_size = 16) {
  return {.format = format, .page_size = page_size, .width = width, .latent = latent};
}

TEST(KvCache, RecordsHoldTheirFormatsValues) {
  const std::vector<float> values = {0.0f, 1.0f, -2.5f, 448.0f, 0.3f, -1000.0f};
  EXPECT_EQ(stored(layer_of(KvFormat::kF32, 6, 4), values), values);
  EXPECT_EQ(stored(layer_of(KvFormat::kBF16, 6, 4), values),
            (std::vector<float>{0, 1, -2.5f, 448, 0.30078125f, -1000}));
  EXPECT_EQ(stored(layer_of(KvFormat::kFp8, 6, 4), values),
            (std::vector<float>{0, 1, -2.5f, 448, 0.3125f, -448}));
}

TEST(KvCache, Int8HasAScaleForLatentAndRope) {
  // Scales 1 and 0.5: every value is a multiple, ties go to the even code.
  EXPECT_EQ(stored(layer_of(KvFormat::kInt8, 6, 3), {127, -64.5f, 1.5f, 63.5f, -0.75f, 0.25f}),
            (std::vector<float>{127, -64, 2, 63.5f, -1, 0}));
  EXPECT_EQ(stored(layer_of(KvFormat::kInt8, 4, 2), {0, 0, 0, 0}), (std::vector<float>(4, 0.0f)));
}

TEST(KvCache, Nvfp4ChoosesTheBlockScaleOfTheLeastError) {
  std::vector<float> values(36, 0.0f);
  // amax / 6 = 1 holds the first block exactly; amax / 4 = 1 the second.
  const float first[] = {6, -3, 0.5f, 1.5f}, second[] = {4, 3, -2, 1};
  for (int i = 0; i < 4; ++i) values[size_t(i)] = first[i], values[size_t(16 + i)] = second[i];
  values[32] = 127, values[33] = -5;
  EXPECT_EQ(stored(layer_of(KvFormat::kNvfp4, 36, 32), values), values);
}

TEST(KvCache, ErrorsAreWithinTheFormatsSteps) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> values(576);
  for (float& v : values) v = normal(random);
  for (const KvFormat format : {KvFormat::kInt8, KvFormat::kNvfp4}) {
    const auto back = stored(layer_of(format, 576, 512), values);
    double error = 0, total = 0;
    for (size_t i = 0; i < 512; ++i) {
      error += std::pow(back[i] - values[i], 2.0);
      total += std::pow(values[i], 2.0);
    }
    // int8: a step of about amax / 127 with amax near 3.2; E2M1: about 9 % of a normal value.
    EXPECT_LT(std::sqrt(error / total), format == KvFormat::kInt8 ? 0.01 : 0.10);
    EXPECT_GT(error, 0);
  }
}

TEST(KvCache, PagesAreRecordsThenScales) {
  EXPECT_EQ(kv_record_bytes(layer_of(KvFormat::kBF16, 576, 512)), 1152);
  EXPECT_EQ(kv_record_bytes(layer_of(KvFormat::kFp8, 576, 512)), 576);
  EXPECT_EQ(kv_record_bytes(layer_of(KvFormat::kInt8, 576, 512)), 580);
  EXPECT_EQ(kv_record_bytes(layer_of(KvFormat::kNvfp4, 576, 512)), 354);
  EXPECT_EQ(kv_page_bytes(layer_of(KvFormat::kFp8, 576, 512)), 16 * 576);
  EXPECT_EQ(kv_page_bytes(layer_of(KvFormat::kInt8, 576, 512)), 16 * 580);
  EXPECT_EQ(kv_page_bytes(layer_of(KvFormat::kNvfp4, 576, 512, 1)), 368);
  std::vector<uint8_t> memory(2 * 16 * 580);
  KvLayer layer = layer_of(KvFormat::kInt8, 576, 512);
  layer.data = memory.data();
  EXPECT_EQ(kv_record(layer, 1, 3).values, memory.data() + 16 * 580 + 3 * 576);
  EXPECT_EQ(kv_record(layer, 1, 3).scales, memory.data() + 16 * 580 + 16 * 576 + 3 * 4);
}

}  // namespace
}  // namespace nibble
