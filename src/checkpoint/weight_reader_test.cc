// Every layout of a linear, and what is wrong with the broken ones. Values that a layout decodes to
// are checked on whole models by tests/layouts_test.py.
#include "checkpoint/weight_reader.h"

#include "checkpoint/test_files.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 3, kCols = 64;

class WeightReaderTest : public testing::Test {
 protected:
  template <typename T = uint8_t>
  void add(const std::string& name, const std::string& dtype, std::vector<int64_t> shape, T value) {
    int64_t count = 1;
    for (const int64_t d : shape) count *= d;
    file_.add_values("x." + name, dtype, shape, std::vector<T>(size_t(count), value));
  }
  void add_nvfp4(const std::string& codes, uint8_t scale = 0x38) {
    add(codes, "U8", {kRows, kCols / 2}, uint8_t(0x72));
    add("weight_scale", "F8_E4M3", {kRows, kCols / 16}, scale);
  }
  void add_int4(int64_t groups) {
    add("weight_packed", "I32", {kRows, kCols / 8}, uint32_t(0x88888889));
    add("weight_scale", "F32", {kRows, groups}, 0.5f);
    file_.add_values("x.weight_shape", "I64", {2}, std::vector<int64_t>{kRows, kCols});
  }
  WeightPart read() {
    const auto& bytes = file_.finish();
    checkpoint_ = Checkpoint::parse("file", bytes.data(), bytes.size());
    return WeightReader(checkpoint_, config_).linear("x", kRows, kCols, true);
  }
  // The first two values of the last row.
  std::pair<float, float> values() {
    const Weight w{.rows = kRows, .cols = kCols, .parts = {read()}};
    std::vector<float> row(static_cast<size_t>(kCols));
    decode_row(w, kRows - 1, row.data());
    return {row[0], row[1]};
  }

  FileBuilder file_;
  Checkpoint checkpoint_;
  QuantizationConfig config_;
};

using Pair = std::pair<float, float>;

TEST_F(WeightReaderTest, ModeloptMultipliesByTheGlobalScale) {
  add_nvfp4("weight");
  add("weight_scale_2", "F32", {}, 0.25f);
  add("input_scale", "F32", {}, 3.0f);
  EXPECT_EQ(values(), Pair(0.25f, 1.5f));
}

TEST_F(WeightReaderTest, CompressedTensorsDividesByTheGlobalScale) {
  add_nvfp4("weight_packed");
  add("weight_global_scale", "F32", {1}, 4.0f);
  EXPECT_EQ(values(), Pair(0.25f, 1.5f));
}

TEST_F(WeightReaderTest, PreQuantScalesMultiplyTheInput) {
  add_nvfp4("weight");
  add("weight_scale_2", "F32", {1}, 0.25f);
  add("pre_quant_scale", "BF16", {kCols}, float_to_bf16(2));
  EXPECT_EQ(values(), Pair(0.5f, 3.0f));
}

TEST_F(WeightReaderTest, Fp8HasOneScale) {
  add("weight", "F8_E4M3", {kRows, kCols}, uint8_t(0xb8));
  add("weight_scale", "F32", {}, 0.5f);
  EXPECT_EQ(values(), Pair(-0.5f, -0.5f));
}

TEST_F(WeightReaderTest, Int4HasTheGroupsThatItsScalesHave) {
  for (const int64_t groups : {1, 2, 4}) {
    file_ = {};
    add_int4(groups);
    EXPECT_EQ(read().group_size, kCols / groups);
    EXPECT_EQ(values(), Pair(0.5f, 0.0f));
  }
}

TEST_F(WeightReaderTest, BrokenLayoutsAreNamed) {
  add_nvfp4("other");
  EXPECT_ERROR(read(), "x.weight: the checkpoint has no such tensor");
  file_ = {};
  add_nvfp4("weight");
  EXPECT_ERROR(read(), "x.weight_scale_2: the checkpoint has no such tensor");
  add("weight_scale_2", "F32", {kRows}, 1.0f);
  EXPECT_ERROR(read(), "it must be one F32 value");
  file_ = {};
  add_nvfp4("weight");
  add("weight_scale_2", "F32", {}, -1.0f);
  EXPECT_ERROR(read(), "x.weight_scale_2: is -1");
  file_ = {};
  add("weight", "U8", {kRows, kCols / 2}, uint8_t(0));
  add("weight_scale", "U8", {kRows, kCols / 16}, uint8_t(0));
  add("weight_scale_2", "F32", {}, 1.0f);
  EXPECT_ERROR(read(), "x.weight_scale: has dtype U8; it must be F8_E4M3");
  file_ = {};
  add_nvfp4("weight_packed");
  add("weight", "BF16", {kRows, kCols}, uint16_t(0));
  EXPECT_ERROR(read(), "only one can be right");
  file_ = {};
  add_int4(3);
  EXPECT_ERROR(read(), "x.weight_scale: shape [3, 3]");
  file_ = {};
  add_int4(2);
  add("weight_zero_point", "I32", {kRows, 1}, 0);
  EXPECT_ERROR(read(), "x.weight_zero_point: is not supported");
}

TEST_F(WeightReaderTest, ATensorOfZerosMayHaveScaleZeroButNoNan) {
  add_nvfp4("weight");
  add("weight_scale_2", "F32", {}, 0.0f);
  EXPECT_EQ(values(), Pair(0.0f, 0.0f));
  file_ = {};
  add_nvfp4("weight", 0xff);
  add("weight_scale_2", "F32", {}, 0.0f);
  EXPECT_ERROR(read(), "x.weight_scale: holds values that are not numbers");
}

TEST_F(WeightReaderTest, TheConfigurationMustAgree) {
  config_ = QuantizationConfig::parse(JsonFile::parse(
      "config.json", R"({"quantization_config": {"quant_algo": "NVFP4", "ignore": ["y"]}})"));
  add("weight", "F8_E4M3", {kRows, kCols}, uint8_t(0xb8));
  add("weight_scale", "F32", {}, 0.5f);
  EXPECT_ERROR(read(), "x is stored as FP8, but config.json: quantization_config says NVFP4");
}

TEST_F(WeightReaderTest, AnEmbeddingOfTheExtensionIsScaledTwice) {
  add_nvfp4("weight");
  add("weight_scale_2", "F32", {}, 0.25f);
  add("input_scale", "F32", {}, 3.0f);
  const auto& bytes = file_.finish();
  checkpoint_ = Checkpoint::parse("file", bytes.data(), bytes.size());
  EXPECT_EQ(WeightReader(checkpoint_, config_).table("x", kRows, kCols).global_scale, 0.25f);
  config_ = QuantizationConfig::parse(JsonFile::parse(
      "config.json", R"({"quantization_config": {"quant_algo": "NVFP4", "nvfp4_embed": true}})"));
  EXPECT_EQ(WeightReader(checkpoint_, config_).table("x", kRows, kCols).global_scale, 0.75f);
}

}  // namespace
}  // namespace nibble
