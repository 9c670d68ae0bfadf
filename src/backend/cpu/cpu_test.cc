// Parts of the CPU backend that backend_test reaches only as a whole.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "backend/cpu/multiply.h"
#include "backend/cpu/records.h"
#include "backend/cpu/rows.h"
#include "backend/cpu/workers.h"

namespace nibble {
namespace {

TEST(Records, EncodeLikeTheScalarTruth) {
  std::vector<float> values;
  for (const float x :
       {0.0f, 448.0f, 464.0f, 1e30f, 0x1p-6f, 0x1p-9f, 0x1p-10f, 1e-30f,
        std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    values.push_back(x);
    values.push_back(-x);
  }
  for (int i = 0; i < 4096; ++i) {  // ties and near ties of every exponent that matters
    values.push_back(std::ldexp(float(1024 + i % 1024) / 1024, i % 20 - 10));
  }
  std::mt19937 random(5);
  while (values.size() % 16 != 5) values.push_back(float(random()) / 1e9f);
  const int width = int(values.size());
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16, KvFormat::kFp8}) {
    std::vector<uint8_t> want(size_t(kv_record_bytes(format, width))), got(want);
    encode_record(format, values.data(), width, want.data());
    encode_record_fast(format, values.data(), width, got.data());
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_EQ(got[i], want[i]) << "byte " << i << " of format " << int(format);
    }
  }
}

TEST(Rows, SiluIsAccurateOverItsRange) {
  std::vector<float> gate;
  for (float x = -95; x < 95; x += 0.0137f) gate.push_back(x);
  const std::vector<float> ones(gate.size(), 1.0f);
  std::vector<float> out(gate.size());
  silu_mul_row(gate.data(), ones.data(), int64_t(gate.size()), out.data());
  for (size_t i = 0; i < gate.size(); ++i) {
    const double want = gate[i] / (1 + std::exp(-double(gate[i])));
    ASSERT_NEAR(out[i], want, 4e-7 * std::fabs(want) + 1e-36) << gate[i];
  }
}

// A stack of two matrices [rows, cols], one value of FP32 in a row making it FP32.
struct Matrices {
  std::vector<float> floats;
  std::vector<uint16_t> halves;
  Weight weight;
};

Matrices matrices_of(Format format, int64_t rows, int64_t cols, std::mt19937& random) {
  Matrices m;
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < 2 * rows * cols; ++i) {
    m.floats.push_back(normal(random));
    m.halves.push_back(uint16_t(std::bit_cast<uint32_t>(m.floats.back()) >> 16));
  }
  m.weight = {.name = "w", .use = Use::kExperts, .count = 2, .rows = rows, .cols = cols};
  const void* values = format == Format::kF32 ? static_cast<const void*>(m.floats.data())
                                              : static_cast<const void*>(m.halves.data());
  m.weight.parts = {
      {.format = format, .rows = 2 * rows, .values = static_cast<const uint8_t*>(values)}};
  return m;
}

TEST(Multiply, AnOutputIsTheSameForAnyRowsAndPanels) {
  Workers workers(1);
  Arena arena;
  std::mt19937 random(9);
  constexpr int64_t kRows = 13, kOutputs = 150, kInputs = 37;
  for (const Format format : {Format::kBF16, Format::kF32}) {
    const Matrices m = matrices_of(format, kOutputs, kInputs, random);
    const auto packed_weight = pack(m.weight, arena, workers.pool());
    const Panels w = packed_weight->panels.matrix(1);
    std::vector<float> x(kRows * kInputs), whole(kRows * kOutputs);
    for (float& v : x) v = std::normal_distribution<float>()(random);
    std::vector<const float*> x_rows;
    std::vector<float*> out_rows;
    for (int64_t r = 0; r < kRows; ++r) {
      x_rows.push_back(x.data() + r * kInputs);
      out_rows.push_back(whole.data() + r * kOutputs);
    }
    workers.multiply(0, {.w = w,
                         .last_panel = w.count(),
                         .x = x_rows.data(),
                         .out = out_rows.data(),
                         .rows = kRows});
    for (int64_t first = 0; first < w.count(); ++first) {
      for (int64_t last = first + 1; last <= w.count(); ++last) {
        const int64_t row = (first * 5 + last) % kRows, rows = 1 + last % (kRows - row);
        std::vector<float> part(size_t(rows * 160), 7.0f);
        std::vector<float*> part_rows;
        for (int64_t r = 0; r < rows; ++r) part_rows.push_back(part.data() + r * 160);
        workers.multiply(0, {.w = w,
                             .first_panel = first,
                             .last_panel = last,
                             .x = x_rows.data() + row,
                             .out = part_rows.data(),
                             .rows = rows,
                             .first_output = first * kPanelRows});
        const int64_t count = std::min(last * kPanelRows, kOutputs) - first * kPanelRows;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t n = 0; n < 160; ++n) {
            const float want =
                n < count ? whole[size_t((row + r) * kOutputs + first * kPanelRows + n)] : 7.0f;
            ASSERT_EQ(part[size_t(r * 160 + n)], want) << first << " " << last << " " << n;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble
