// Parts of the CPU backend that backend_test reaches only as a whole.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "backend/cpu/mla_kernels.h"
#include "backend/cpu/multiply.h"
#include "backend/cpu/records.h"
#include "backend/cpu/rows.h"
#include "backend/cpu/test_targets.h"
#include "backend/cpu/workers.h"
#include "base/numbers.h"

namespace nibble {
namespace {

TEST(Pieces, EveryItemIsTakenOnceByWhoeverIsFree) {
  for (const int threads : {1, 2, 5}) {
    for (const auto& [count, piece] :
         {std::pair<int64_t, int64_t>{0, 3}, {1, 0}, {7, 10}, {1000, 1}, {1001, 7}}) {
      Pieces pieces(threads);
      pieces.deal(count, piece);
      std::vector<std::atomic<int>> taken(static_cast<size_t>(count));
      std::vector<std::thread> pool;
      for (int t = 0; t < threads; t += 2) {  // the others never come
        pool.emplace_back([&, t] {
          for (Share share = pieces.take(t); !share.empty(); share = pieces.take(t)) {
            for (int64_t i = share.first; i < share.last; ++i) ++taken[size_t(i)];
          }
        });
      }
      for (std::thread& thread : pool) thread.join();
      for (int64_t i = 0; i < count; ++i) EXPECT_EQ(taken[size_t(i)], 1) << i << " of " << count;
    }
  }
}

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
    const KvLayer layer{.format = format, .page_size = 1, .width = width, .latent = width};
    std::vector<uint8_t> want(size_t(kv_record_bytes(layer))), got(want);
    encode_record(layer, values.data(), {want.data()});
    for_each_target([&](int64_t) {
      encode_record_fast(layer, values.data(), {got.data()});
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_EQ(got[i], want[i]) << "byte " << i << " of format " << int(format);
      }
    });
  }
}

#if defined(__x86_64__)
// On machines where BF16 products are slow no record becomes BF16.
TEST(Records, HalvesTimesScalesAreWhatIsStored) {
  if (!instruction_sets().fast_avx512bf16) GTEST_SKIP() << "no fast AVX512-BF16 here";
  constexpr int kWidth = 640, kLatent = 576;
  std::mt19937 random(6);
  for (const KvFormat format : {KvFormat::kFp8, KvFormat::kInt8, KvFormat::kNvfp4}) {
    const KvLayer layer{.format = format, .page_size = 1, .width = kWidth, .latent = kLatent};
    std::vector<uint8_t> bytes(size_t(kv_record_bytes(layer)));
    for (int round = 0; round < 20; ++round) {
      for (uint8_t& byte : bytes) byte = uint8_t(random() % 0x78 + random() % 2 * 0x80);
      const KvRecord record{bytes.data(), bytes.data() + kv_value_bytes(layer)};
      std::vector<float> want(kWidth);
      decode_record(layer, record, want.data());
      std::vector<uint16_t> halves(kWidth);
      float latent_scale = 0, rope_scale = 0;
      convert_record_avx512bf16(layer, record, halves.data(), &latent_scale, &rope_scale);
      for (size_t k = 0; k < kWidth; ++k) {
        const float scale = k < kLatent ? latent_scale : rope_scale;
        ASSERT_EQ(bf16_to_float(halves[k]) * scale, want[k])
            << "value " << k << " of format " << int(format);
      }
    }
  }
}
#endif

TEST(Rows, SiluIsAccurateOverItsRange) {
  std::vector<float> gate;
  for (float x = -95; x < 95; x += 0.0137f) gate.push_back(x);
  const std::vector<float> ones(gate.size(), 1.0f);
  std::vector<float> out(gate.size());
  for_each_target([&](int64_t) {
    silu_mul_row(gate.data(), ones.data(), int64_t(gate.size()), out.data());
    for (size_t i = 0; i < gate.size(); ++i) {
      const double want = gate[i] / (1 + std::exp(-double(gate[i])));
      ASSERT_NEAR(out[i], want, 1e-6 * std::fabs(want) + 1e-36) << gate[i];
    }
  });
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

// The exact product of x and w, and how far a kernel's may be from it. FP32 sums are off by at most
// (K + 2) 2^-24 of the magnitudes. What is rounded to inputs or weights of fewer bits is off
// independently and evenly by up to half a step: 8 deviations of that, step / sqrt(12) for each,
// where the step is
//   kBF16              2^-8 of the value, at most
//   kInt16, kSplit16   max|x| / 32639
//   weights in INT8    max|w| / 127
struct Product {
  double exact = 0, bound = 0;
};
Product product_of(const Panels& panels, InputFormat input, const float* x, const float* w) {
  double exact = 0, magnitudes = 0, squares = 0, xx = 0, ww = 0, most_x = 0, most_w = 0;
  for (int64_t k = 0; k < panels.cols; ++k) {
    const double a = x[k], b = w[k], product = a * b;
    exact += product, magnitudes += std::fabs(product), squares += product * product;
    xx += a * a, ww += b * b;
    most_x = std::max(most_x, std::fabs(a)), most_w = std::max(most_w, std::fabs(b));
  }
  double variance = 0;  // in squares of steps
  if (input == InputFormat::kBF16) variance += 0x1p-16 * squares;
  if (input == InputFormat::kInt16 || input == InputFormat::kSplit16) {
    variance += most_x / 32639 * most_x / 32639 * ww;
  }
  if (panels.format == PanelFormat::kInt8) variance += most_w / 127 * most_w / 127 * xx;
  return {exact, double(panels.cols + 2) * 0x1p-24 * magnitudes + 8 * std::sqrt(variance / 12)};
}

// Products of every run of panels equal, bit for bit, those of all panels and 13 rows at once,
// which are near the exact ones.
void check_products(const Panels& w, const float* weights, const Kernel& kernel,
                    std::vector<float>* result = nullptr) {
  constexpr int64_t kRows = 13, kStride = 160;
  std::mt19937 random(9);
  std::vector<float> x(size_t(kRows * w.cols)), whole(size_t(kRows * w.rows));
  for (float& v : x) v = std::normal_distribution<float>()(random);
  const int64_t bytes = input_row_bytes(kernel.input, w.cols);
  Scratch<uint8_t> memory, scratch;
  const InputRows inputs{memory.fit(size_t(kRows * bytes)), bytes};
  for (int64_t r = 0; r < kRows; ++r) {
    make_input_row(kernel.input, x.data() + r * w.cols, nullptr, w.cols, memory.data() + r * bytes);
  }
  kernel.multiply({.w = w,
                   .last_panel = w.count(),
                   .x = inputs,
                   .rows = kRows,
                   .out = whole.data(),
                   .out_stride = w.rows},
                  scratch);
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t n = 0; n < w.rows; ++n) {
      const Product want = product_of(w, kernel.input, x.data() + r * w.cols, weights + n * w.cols);
      ASSERT_NEAR(whole[size_t(r * w.rows + n)], want.exact, want.bound);
    }
  }
  for (int64_t first = 0; first < w.count(); ++first) {
    for (int64_t last = first + 1; last <= w.count(); ++last) {
      const int64_t row = (first * 5 + last) % kRows, rows = 1 + last % (kRows - row);
      std::vector<float> part(size_t(rows * kStride), 7.0f);
      kernel.multiply({.w = w,
                       .first_panel = first,
                       .last_panel = last,
                       .x = {inputs.row(row), bytes},
                       .rows = rows,
                       .out = part.data(),
                       .out_stride = kStride,
                       .first_output = first * kPanelRows},
                      scratch);
      const int64_t count = std::min(last * kPanelRows, w.rows) - first * kPanelRows;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t n = 0; n < kStride; ++n) {
          const float* want = whole.data() + (row + r) * w.rows + first * kPanelRows;
          ASSERT_EQ(part[size_t(r * kStride + n)], n < count ? want[n] : 7.0f)
              << first << " " << last << " " << n;
        }
      }
    }
  }
  if (result != nullptr) *result = whole;
}

std::vector<float> decoded(const Weight& w, int64_t first, int64_t count) {
  std::vector<float> weights(size_t(count * w.cols));
  for (int64_t n = 0; n < count; ++n) decode_row(w, first + n, weights.data() + n * w.cols);
  return weights;
}

int64_t bytes_of(const PackedWeight& w) {
  int64_t bytes = 0;
  for (const PanelStack* stack : {&w.panels, &w.keys, &w.key_rows}) {
    if (stack->matrices > 0) bytes += stack->matrices * stack->first.bytes();
  }
  return bytes;
}

TEST(Multiply, AnOutputIsTheSameForAnyRowsAndPanels) {
  Workers workers(1);
  Arena arena;
  std::mt19937 random(9);
  constexpr int64_t kOutputs = 150, kInputs = 37;
  for (const Format format : {Format::kBF16, Format::kF32}) {
    const Matrices m = matrices_of(format, kOutputs, kInputs, random);
    const auto packed_weight = pack(m.weight, arena, workers.pool());
    const auto weights = decoded(m.weight, kOutputs, kOutputs);
    const Panels w = packed_weight->panels.matrix(1);
    EXPECT_EQ(packed_bytes(m.weight), bytes_of(*packed_weight));
    for_each_target([&](int64_t) {
      check_products(w, weights.data(), {.input = InputFormat::kF32, .multiply = multiply_f32});
    });
    const Kernel& best = workers.kernel(w.format, 13);
    if (best.input == InputFormat::kBF16) check_products(w, weights.data(), best);
  }
}

// Those of one instruction set that this machine has.
std::vector<Kernel> nvfp4_kernels() {
  std::vector<Kernel> kernels;
#if defined(__x86_64__)
  const InstructionSets sets = instruction_sets();
  const auto add = [&](bool has, InputFormat input, MultiplyFunction multiply) {
    if (has) kernels.push_back({.input = input, .multiply = multiply});
  };
  add(sets.avx2, InputFormat::kSplit16, multiply_nvfp4_avx2);
  add(sets.avx2, InputFormat::kInt16, multiply_nvfp4_wide_avx2);
  add(sets.avxvnni, InputFormat::kSplit16, multiply_nvfp4_avxvnni);
  add(sets.avx512vnni, InputFormat::kSplit16, multiply_nvfp4_avx512vnni);
  add(sets.avx512vbmi, InputFormat::kSplit16, multiply_nvfp4_avx512vbmi);
#endif
  return kernels;
}

// A stack of two NVFP4 matrices, some block scales of which are negative or zero.
TEST(Multiply, Nvfp4HasTheSameBitsWhereMultiplyAddsAreFused) {
  Workers workers(1);
  Arena arena;
  std::mt19937 random(9);
  constexpr int64_t kOutputs = 150;
  for (const int64_t inputs : {16, 64, 80, 336}) {
    std::vector<uint8_t> codes(size_t(2 * kOutputs * inputs / 2));
    std::vector<uint8_t> scales(codes.size() / 8);
    for (uint8_t& byte : codes) byte = uint8_t(random());
    for (uint8_t& byte : scales) byte = uint8_t(random() % 2 * 0x80 + random() % 0x48);
    Weight weight{.name = "w", .use = Use::kExperts, .count = 2, .rows = kOutputs, .cols = inputs};
    for (const int64_t half : {0, 1}) {
      weight.parts.push_back({.format = Format::kNvfp4,
                              .rows = kOutputs,
                              .values = codes.data() + half * kOutputs * inputs / 2,
                              .block_scales = scales.data() + half * kOutputs * inputs / 16,
                              .global_scale = half == 0 ? 0.3f : 0.07f});
    }
    const auto packed_weight = pack(weight, arena, workers.pool());
    const Panels w = packed_weight->panels.matrix(1);
    ASSERT_EQ(w.format, PanelFormat::kNvfp4);
    EXPECT_EQ(packed_bytes(weight), bytes_of(*packed_weight));
    const auto weights = decoded(weight, kOutputs, kOutputs);
    std::vector<float> want, got;
    check_products(w, weights.data(), workers.exact_kernel(w.format), &want);
    for (const Kernel& kernel : nvfp4_kernels()) {
      check_products(w, weights.data(), kernel, &got);
      EXPECT_EQ(got, want);
    }
    for_each_target([&](int64_t target) {
      const Kernel portable{.input = InputFormat::kInt16, .multiply = multiply_nvfp4};
      check_products(w, weights.data(), portable, &got);
      constexpr int64_t kUnfused = HWY_SCALAR | HWY_EMU128 | HWY_SSSE3 | HWY_SSE4;
      if ((target & kUnfused) == 0) {
        EXPECT_EQ(got, want);
      }
    });
  }
}

// The keys of two heads, whose outputs are the stored columns.
TEST(Multiply, Nvfp4ColumnsHaveTheSameBitsWhereMultiplyAddsAreFused) {
  Workers workers(1);
  Arena arena;
  std::mt19937 random(9);
  constexpr int64_t kRows = 96, kLatent = 144;
  for (const int64_t inputs : {16, 64, 80}) {
    std::vector<uint8_t> codes(size_t(2 * kRows * kLatent / 2)), scales(codes.size() / 8);
    for (uint8_t& byte : codes) byte = uint8_t(random());
    for (uint8_t& byte : scales) byte = uint8_t(random() % 2 * 0x80 + random() % 0x48);
    Weight weight{.name = "kv_b",
                  .use = Use::kLatentUp,
                  .count = 2,
                  .rows = kRows,
                  .cols = kLatent,
                  .key_rows = inputs};
    weight.parts = {{.format = Format::kNvfp4,
                     .rows = 2 * kRows,
                     .values = codes.data(),
                     .block_scales = scales.data(),
                     .global_scale = 0.3f}};
    const auto packed_weight = pack(weight, arena, workers.pool());
    const Panels w = packed_weight->keys.matrix(1);
    ASSERT_EQ(w.format, PanelFormat::kNvfp4Columns);
    EXPECT_EQ(packed_bytes(weight), bytes_of(*packed_weight));
    const auto rows = decoded(weight, kRows, inputs);
    std::vector<float> columns(rows.size());
    for (int64_t k = 0; k < inputs; ++k) {
      for (int64_t n = 0; n < kLatent; ++n) columns[size_t(n * inputs + k)] = rows[k * kLatent + n];
    }
    std::vector<float> want, got;
    check_products(w, columns.data(), workers.kernel(w.format, 13), &want);
    for_each_target([&](int64_t target) {
      const Kernel portable{.input = InputFormat::kF32, .multiply = multiply_nvfp4_columns};
      check_products(w, columns.data(), portable, &got);
      constexpr int64_t kUnfused = HWY_SCALAR | HWY_EMU128 | HWY_SSSE3 | HWY_SSE4;
      if ((target & kUnfused) == 0) {
        EXPECT_EQ(got, want);
      }
    });
  }
}

// On machines without AMX there is nothing to test: products never reach it.
TEST(Multiply, AmxTilesAreTheSameForAnyRowsAndPanels) {
  if (!instruction_sets().amx_bf16) GTEST_SKIP() << "no AMX here";
  Workers workers(1);
  Arena arena;
  std::mt19937 random(9);
  for (const int64_t inputs : {16, 64, 80, 336, 1136}) {
    std::vector<uint8_t> codes(size_t(150 * inputs / 2)), scales(codes.size() / 8);
    for (uint8_t& byte : codes) byte = uint8_t(random());
    for (uint8_t& byte : scales) byte = uint8_t(random() % 0x40);
    Weight weight{.name = "w", .rows = 150, .cols = inputs};
    weight.parts = {{.format = Format::kNvfp4,
                     .rows = 150,
                     .values = codes.data(),
                     .block_scales = scales.data(),
                     .global_scale = 0.07f}};
    const auto packed_weight = pack(weight, arena, workers.pool());
    const auto weights = decoded(weight, 0, 150);
    check_products(packed_weight->panels.first, weights.data(),
                   workers.kernel(PanelFormat::kNvfp4, kWideRows));
  }
}

TEST(Multiply, AmxTilesOfBf16AreTheSameForAnyRowsAndPanels) {
  if (!instruction_sets().amx_bf16) GTEST_SKIP() << "no AMX here";
  Workers workers(1);
  Arena arena;
  std::mt19937 random(9);
  for (const int64_t inputs : {5, 32, 64, 81, 336, 1121}) {
    const Matrices m = matrices_of(Format::kBF16, 150, inputs, random);
    const auto packed_weight = pack(m.weight, arena, workers.pool());
    const auto weights = decoded(m.weight, 150, 150);
    check_products(packed_weight->panels.matrix(1), weights.data(),
                   workers.kernel(PanelFormat::kBF16, kWideRows));
  }
}

TEST(Multiply, Int8IsTheSameForAnyRowsAndPanels) {
  Workers workers(1);
  Arena arena;
  std::mt19937 random(9);
  for (const int64_t inputs : {5, 64, 1100}) {
    Matrices m = matrices_of(Format::kBF16, 75, inputs, random);
    m.weight.use = Use::kHead;
    m.weight.count = 1;
    m.weight.rows = 150;
    const auto packed_weight = pack(m.weight, arena, workers.pool());
    const Panels w = packed_weight->panels.first;
    ASSERT_EQ(w.format, PanelFormat::kInt8);
    const auto weights = decoded(m.weight, 0, 150);
    std::vector<float> want, got;
    check_products(w, weights.data(), workers.kernel(w.format, 1), &want);
    for_each_target([&](int64_t) {
      check_products(w, weights.data(), {.input = InputFormat::kInt16, .multiply = multiply_int8},
                     &got);
      EXPECT_EQ(got, want);
    });
  }
}

TEST(Inputs, IntegersAreWithinHalfAStep) {
  // The scale, its inverse and their product with a value are rounded.
  constexpr double kHalf = 0.5 + 3 * 0x1p-24 * 32639;
  std::mt19937 random(4);
  for (const int64_t n : {1, 7, 16, 100, 2048}) {
    std::vector<float> x(static_cast<size_t>(n));
    for (float& v : x) v = std::normal_distribution<float>(0, 30)(random);
    std::vector<uint8_t> row(size_t(input_row_bytes(InputFormat::kInt16, n)), 0xcc), first;
    for_each_target([&](int64_t) {
      make_input_row(InputFormat::kInt16, x.data(), nullptr, n, row.data());
      float scale;
      std::memcpy(&scale, row.data(), sizeof(scale));
      const int16_t* integers = reinterpret_cast<const int16_t*>(row.data() + kInt16Header);
      for (int64_t k = 0; k < n; ++k) {
        const double value = double(integers[k / 8 * 8 + k % 4 * 2 + k % 8 / 4]) * double(scale);
        ASSERT_NEAR(value, x[size_t(k)], kHalf * double(scale)) << k;
      }
      if (first.empty()) first = row;
      EXPECT_EQ(row, first);
    });
  }
  std::vector<float> odd(16, 1.0f);
  std::vector<uint8_t> row(size_t(input_row_bytes(InputFormat::kInt16, 16)));
  float scale;
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    odd[5] = bad;
    make_input_row(InputFormat::kInt16, odd.data(), nullptr, 16, row.data());
    std::memcpy(&scale, row.data(), sizeof(scale));
    EXPECT_TRUE(std::isnan(scale));
  }
  std::fill(odd.begin(), odd.end(), 0.0f);
  make_input_row(InputFormat::kInt16, odd.data(), nullptr, 16, row.data());
  std::memcpy(&scale, row.data(), sizeof(scale));
  EXPECT_EQ(scale, 0.0f);
}

// Those makers of kSplit16 that this machine has.
auto split16_makers() {
  std::vector<void (*)(const float*, const float*, int64_t, uint8_t*)> makers;
#if defined(__x86_64__)
  if (instruction_sets().avx2) makers.push_back(make_split16_row_avx2);
  if (instruction_sets().avx512) makers.push_back(make_split16_row_avx512vnni);
#endif
  return makers;
}

TEST(Inputs, BytesAreThoseOfTheIntegers) {
  std::mt19937 random(4);
  for (const int64_t n : {1, 7, 16, 100, 2048}) {
    std::vector<float> x(static_cast<size_t>(n));
    for (float& v : x) v = std::normal_distribution<float>(0, 30)(random);
    x[size_t(n / 2)] = 200;  // becomes the largest integer
    std::vector<uint8_t> whole(size_t(input_row_bytes(InputFormat::kInt16, n)));
    std::vector<uint8_t> row(size_t(input_row_bytes(InputFormat::kSplit16, n)), 0xcc);
    for (const auto make_split16_row : split16_makers()) {
      make_input_row(InputFormat::kInt16, x.data(), nullptr, n, whole.data());
      make_split16_row(x.data(), nullptr, n, row.data());
      EXPECT_EQ(std::memcmp(row.data(), whole.data(), sizeof(float)), 0);
      const int16_t* integers = reinterpret_cast<const int16_t*>(whole.data() + kInt16Header);
      const int64_t columns = (n + kSplitColumns - 1) / kSplitColumns * kSplitColumns;
      for (int64_t first = 0; first < columns; first += 16) {
        const uint8_t* block = row.data() + kInt16Header + first / 64 * kSplitBlockBytes;
        int32_t sum = 0, want_sum;
        std::memcpy(&want_sum, block + 2 * kSplitColumns + first % 64 / 4, sizeof(want_sum));
        for (int64_t k = first; k < first + 16; ++k) {
          const uint8_t* byte = block + k % 64 / 8 * 8 + k % 2 * 4 + k % 8 / 2;
          const int got = 256 * int8_t(byte[0]) + int8_t(byte[kSplitColumns]);
          ASSERT_EQ(got, integers[k / 8 * 8 + k % 4 * 2 + k % 8 / 4]) << k;
          sum -= kSplitOffset * got;
        }
        EXPECT_EQ(sum, want_sum) << first;
      }
      const InputNorms a = input_norms(InputFormat::kInt16, x.data(), whole.data(), n);
      const InputNorms b = input_norms(InputFormat::kSplit16, x.data(), row.data(), n);
      EXPECT_EQ(a.norm, b.norm);
      EXPECT_EQ(a.error, b.error);
    }
  }
}

}  // namespace
}  // namespace nibble
