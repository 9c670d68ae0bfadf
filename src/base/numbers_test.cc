#include "base/numbers.h"

#include <gtest/gtest.h>

#include <limits>

namespace nibble {
namespace {

TEST(Numbers, EveryBf16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = bf16_to_float(uint16_t(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(value))));
    } else {
      EXPECT_EQ(float_to_bf16(value), bits);
    }
  }
}

TEST(Numbers, Bf16RoundsTiesToEven) {
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(float_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
}

// Nearest by search over all codes, ties to the even code.
uint8_t nearest_e4m3(float value) {
  uint8_t best = 0;
  for (int code = 1; code < 0x7f; ++code) {
    const float d = std::fabs(e4m3_to_float(uint8_t(code)) - value);
    const float e = std::fabs(e4m3_to_float(best) - value);
    if (d < e || (d == e && code % 2 == 0)) best = uint8_t(code);
  }
  return best;
}

TEST(Numbers, E4m3RoundsToNearestEven) {
  for (int code = 0; code < 0x7f; ++code) {
    const float value = e4m3_to_float(uint8_t(code));
    EXPECT_EQ(float_to_e4m3(value), code);
    EXPECT_EQ(float_to_e4m3(-value), code | 0x80);
    if (code == 0x7e) break;
    const float middle = (value + e4m3_to_float(uint8_t(code + 1))) / 2;
    for (const float x : {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, 1e9f)}) {
      EXPECT_EQ(float_to_e4m3(x), nearest_e4m3(x)) << x;
    }
  }
  EXPECT_EQ(float_to_e4m3(1e30f), 0x7e);
  EXPECT_EQ(float_to_e4m3(std::numeric_limits<float>::infinity()), 0x7e);
  EXPECT_EQ(float_to_e4m3(std::numeric_limits<float>::quiet_NaN()) & 0x7f, 0x7f);
}

TEST(Numbers, E2m1RoundsToNearestEvenAndSaturates) {
  for (int code = 0; code < 16; ++code) {
    if (code == 8) continue;
    EXPECT_EQ(float_to_e2m1(e2m1_to_float(uint8_t(code))), code);
  }
  EXPECT_EQ(float_to_e2m1(0.25f), 0);
  EXPECT_EQ(float_to_e2m1(0.75f), 2);
  EXPECT_EQ(float_to_e2m1(1.25f), 2);
  EXPECT_EQ(float_to_e2m1(1.75f), 4);
  EXPECT_EQ(float_to_e2m1(2.5f), 4);
  EXPECT_EQ(float_to_e2m1(3.5f), 6);
  EXPECT_EQ(float_to_e2m1(5.0f), 6);
  EXPECT_EQ(float_to_e2m1(99.0f), 7);
  EXPECT_EQ(float_to_e2m1(-0.0f), 0);
  EXPECT_EQ(float_to_e2m1(-0.1f), 8);
}

TEST(Numbers, F16Values) {
  EXPECT_EQ(f16_to_float(0x3c00), 1.0f);
  EXPECT_EQ(f16_to_float(0xc000), -2.0f);
  EXPECT_EQ(f16_to_float(0x0001), std::ldexp(1.0f, -24));
  EXPECT_EQ(f16_to_float(0x7bff), 65504.0f);
  EXPECT_TRUE(std::isinf(f16_to_float(0x7c00)));
}

}  // namespace
}  // namespace nibble
