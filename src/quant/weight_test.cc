// decode_row of every storage format, against values worked out by hand.
#include "quant/weight.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/numbers.h"
#include "quant/fp8.h"

namespace nibble {
namespace {

std::vector<uint8_t> bytes_of(const std::vector<float>& floats, DType dtype) {
  std::vector<uint8_t> bytes(floats.size() * dtype_bytes(dtype));
  for (size_t i = 0; i < floats.size(); ++i) {
    if (dtype == DType::kF32) {
      std::memcpy(bytes.data() + 4 * i, &floats[i], 4);
    } else {
      const uint16_t bits = float_to_bf16(floats[i]);
      std::memcpy(bytes.data() + 2 * i, &bits, 2);
    }
  }
  return bytes;
}

std::vector<float> row_of(const Weight& w, int64_t r) {
  std::vector<float> row(static_cast<size_t>(w.cols));
  decode_row(w, r, row.data());
  return row;
}

TEST(DecodeRow, Int4TakesTheLowestNibbleFirstAndOneScalePerGroup) {
  // Two rows of 16 columns in groups of 8: the 32-bit words 0x76543210 and 0xfedcba98.
  const std::vector<uint8_t> words = {0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe,
                                      0x98, 0xba, 0xdc, 0xfe, 0x10, 0x32, 0x54, 0x76};
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const auto scales = bytes_of({0.5f, 2.0f, 1.0f, 0.25f}, dtype);
    const Weight w{.rows = 2,
                   .cols = 16,
                   .parts = {{.format = Format::kInt4,
                              .rows = 2,
                              .values = words.data(),
                              .block_scales = scales.data(),
                              .group_size = 8,
                              .group_scale_dtype = dtype}}};
    EXPECT_EQ(row_of(w, 0), (std::vector<float>{-4, -3.5, -3, -2.5, -2, -1.5, -1, -.5, 0, 2, 4, 6,
                                                8, 10, 12, 14}));
    EXPECT_EQ(row_of(w, 1), (std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7, -2, -1.75, -1.5, -1.25, -1,
                                                -.75, -.5, -.25}));
    EXPECT_EQ(storage_bytes(w), 16 + int64_t(scales.size()));
  }
}

TEST(DecodeRow, InputScalesMultiplyTheColumnsOfTheirPart) {
  const auto values = bytes_of({1, -2, 3, 4, 5, 6}, DType::kBF16);
  const auto scales = bytes_of({2, 0.5f}, DType::kBF16), other = bytes_of({1, 8}, DType::kF32);
  const Weight w{.rows = 3,
                 .cols = 2,
                 .parts = {{.format = Format::kBF16,
                            .rows = 2,
                            .values = values.data(),
                            .input_scales = scales.data(),
                            .input_scale_dtype = DType::kBF16},
                           {.format = Format::kBF16,
                            .rows = 1,
                            .values = values.data() + 8,
                            .input_scales = other.data()}}};
  EXPECT_EQ(row_of(w, 0), (std::vector<float>{2, -1}));
  EXPECT_EQ(row_of(w, 1), (std::vector<float>{6, 2}));
  EXPECT_EQ(row_of(w, 2), (std::vector<float>{5, 48}));
  EXPECT_EQ(storage_bytes(w), 12 + 4 + 8);
}

TEST(Fp8, RoundTripIsWithinHalfAStep) {
  const std::vector<float> values = {0, -1, 0.3f, 7, -7, 0.001f, 6.9f};
  const float scale = fp8::scale_of(7);
  std::vector<uint8_t> codes(values.size());
  fp8::encode_row(values.data(), scale, int64_t(values.size()), codes.data());
  const Weight w{
      .rows = 1,
      .cols = int64_t(values.size()),
      .parts = {
          {.format = Format::kFp8, .rows = 1, .values = codes.data(), .global_scale = scale}}};
  const auto row = row_of(w, 0);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_NEAR(row[i], values[i], std::fabs(values[i]) * 0x1p-4 + scale * 0x1p-10) << i;
  }
  EXPECT_EQ(codes[3], 0x7e);
  EXPECT_EQ(codes[4], 0xfe);
  fp8::encode_row(values.data(), 0, int64_t(values.size()), codes.data());
  EXPECT_EQ(codes[3], 0);
}

}  // namespace
}  // namespace nibble
