#include "checkpoint/quantization_config.h"

#include "checkpoint/test_files.h"

namespace nibble {
namespace {

constexpr char kDown[] = "model.layers.0.mlp.down_proj";

QuantizationConfig parse(const std::string& text) {
  return QuantizationConfig::parse(
      JsonFile::parse("config.json", R"({"quantization_config": )" + text + "}"));
}

std::string check_error(const QuantizationConfig& config, const FoundLinear& linear) {
  try {
    config.check(linear);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

#define EXPECT_CONTRADICTION(config, linear, part)               \
  do {                                                           \
    const std::string message = check_error(config, linear);     \
    EXPECT_NE(message.find(part), std::string::npos) << message; \
  } while (false)

FoundLinear linear(const std::string& name, Format format, int group_size = 0) {
  return {.name = name, .format = format, .group_size = group_size, .is_listed = true};
}

TEST(QuantizationConfig, NothingSaidAllowsEverything) {
  const QuantizationConfig config = QuantizationConfig::parse(JsonFile::parse("config.json", "{}"));
  EXPECT_TRUE(config.empty());
  EXPECT_EQ(config.method(), "");
  EXPECT_EQ(check_error(config, linear(kDown, Format::kNvfp4)), "");
}

TEST(QuantizationConfig, ModeloptNamesOneFormatAndWhatIsExcluded) {
  for (const char* algorithm : {"NVFP4", "NVFP4_AWQ", "W4A16_NVFP4"}) {
    const QuantizationConfig config =
        parse(R"({"quant_method": "modelopt", "quant_algo": ")" + std::string(algorithm) +
              R"(", "ignore": ["lm_head", "model.layers.1.self_attn*"]})");
    EXPECT_EQ(config.method(), "modelopt");
    EXPECT_EQ(check_error(config, linear(kDown, Format::kNvfp4)), "");
    EXPECT_CONTRADICTION(config, linear(kDown, Format::kFp8), "says NVFP4");
    EXPECT_CONTRADICTION(config, linear(kDown, Format::kBF16), "does not exclude it");
    EXPECT_CONTRADICTION(config, linear("lm_head", Format::kNvfp4), "excludes it (\"lm_head\")");
    EXPECT_CONTRADICTION(config, linear("model.layers.1.self_attn.o_proj", Format::kNvfp4),
                         "excludes it");
    EXPECT_EQ(check_error(config, linear("model.layers.1.self_attn.o_proj", Format::kBF16)), "");
  }
}

TEST(QuantizationConfig, WhatExportersDoNotListMayBePlain) {
  const QuantizationConfig config = parse(R"({"quant_algo": "NVFP4"})");
  EXPECT_EQ(config.method(), "modelopt");
  EXPECT_EQ(check_error(config, {.name = "model.layers.1.mlp.gate", .format = Format::kBF16}), "");
}

TEST(QuantizationConfig, MixedPrecisionListsItsLayers) {
  const QuantizationConfig config = parse(R"({"quant_method": "modelopt",
      "quant_algo": "MIXED_PRECISION", "quantized_layers": {
        "model.layers.0.mlp.down_proj": {"quant_algo": "FP8"},
        "model.layers.1.mlp.experts": {"quant_algo": "NVFP4_AWQ", "group_size": 16}}})");
  EXPECT_EQ(check_error(config, linear(kDown, Format::kFp8)), "");
  EXPECT_CONTRADICTION(config, linear(kDown, Format::kNvfp4), "says FP8");
  EXPECT_CONTRADICTION(config, linear(kDown, Format::kBF16), "says FP8");
  EXPECT_EQ(check_error(config, linear("model.layers.1.mlp.experts.3.up_proj", Format::kNvfp4)),
            "");
  EXPECT_EQ(check_error(config, linear("lm_head", Format::kBF16)), "");
  EXPECT_CONTRADICTION(config, linear("lm_head", Format::kNvfp4),
                       "does not say that it is quantized");
}

TEST(QuantizationConfig, CompressedTensorsHaveGroupsTargetsAndPatterns) {
  const QuantizationConfig config = parse(R"({"quant_method": "compressed-tensors",
      "format": "pack-quantized", "ignore": ["lm_head", "re:.*mlp\\.gate$"],
      "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int",
                    "strategy": "group", "group_size": 32, "symmetric": true}},
        "group_1": {"targets": ["re:.*self_attn.*"], "weights": {"num_bits": 4, "type": "float",
                    "group_size": 16}}}})");
  EXPECT_EQ(config.method(), "compressed-tensors");
  EXPECT_EQ(check_error(config, linear(kDown, Format::kInt4, 32)), "");
  EXPECT_CONTRADICTION(config, linear(kDown, Format::kInt4, 128), "group_size 32");
  EXPECT_CONTRADICTION(config, linear(kDown, Format::kNvfp4), "says INT4");
  EXPECT_EQ(check_error(config, linear("model.layers.0.self_attn.o_proj", Format::kNvfp4)), "");
  EXPECT_CONTRADICTION(config, linear("model.layers.1.mlp.gate", Format::kInt4, 32), "excludes it");
  EXPECT_EQ(check_error(config, linear("model.layers.1.mlp.gate", Format::kBF16)), "");
}

TEST(QuantizationConfig, WhatIsNotSupportedIsNamed) {
  EXPECT_ERROR(parse(R"({"quant_method": "gptq"})"), "quant_method is \"gptq\"");
  EXPECT_ERROR(parse(R"({"bits": 4})"), "quant_method");
  EXPECT_ERROR(parse(R"({"quant_algo": "MXFP8"})"), "quant_algo is \"MXFP8\"");
  EXPECT_ERROR(parse(R"({"quant_algo": "NVFP4", "group_size": 32})"), "group_size is 32");
  EXPECT_ERROR(parse(R"({"quant_algo": "NVFP4", "ignore": "lm_head"})"), "ignore must be a list");
  EXPECT_ERROR(parse(R"({"quant_algo": "NVFP4", "ignore": [1]})"), "must hold strings");
  EXPECT_ERROR(parse(R"({"quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": 1}})"),
               "must hold objects");
  const auto group = [](const std::string& weights) {
    return R"({"quant_method": "compressed-tensors", "config_groups": {"g": {"targets": ["Linear"],
              "weights": )" +
           weights + "}}}";
  };
  EXPECT_ERROR(parse(group(R"({"num_bits": 8, "type": "int"})")), "num_bits 8 of type int");
  EXPECT_ERROR(parse(group(R"({"num_bits": 4, "type": "int", "symmetric": false})")), "symmetric");
  EXPECT_ERROR(parse(group(R"({"num_bits": 4, "type": "int", "actorder": "group"})")), "actorder");
  EXPECT_ERROR(parse(group(R"({"num_bits": 4, "type": "float", "group_size": 32})")), "must be 16");
  EXPECT_ERROR(parse(R"({"quant_method": "compressed-tensors", "config_groups": {},
                         "ignore": ["re:("]})"),
               "not a regular expression");
}

QuantizationConfig parse_ignore(const std::string& pattern) {
  return parse(R"({"quant_method": "compressed-tensors", "ignore": ["re:)" + pattern +
               R"("], "config_groups": {"g": {"targets": ["Linear"],
               "weights": {"num_bits": 4, "type": "float", "group_size": 16}}}})");
}

TEST(QuantizationConfig, HostilePatternsCostLittle) {
  EXPECT_ERROR(parse_ignore(std::string(100000, '(')), "at most 256 bytes");
  EXPECT_ERROR(parse_ignore("((a{1,1000}){1,1000}){1,1000}"), "without {}");
  EXPECT_ERROR(parse_ignore(R"((a)\\1)"), "back references");
  // A matcher that tries one way after another would not end.
  EXPECT_EQ(check_error(parse_ignore("(([a-z_.0-9]*)*)*!"), linear(kDown, Format::kNvfp4)), "");
  const QuantizationConfig all_but_experts = parse_ignore("^(?!.*experts)model");
  EXPECT_EQ(check_error(all_but_experts, linear(kDown, Format::kBF16)), "");
  EXPECT_CONTRADICTION(all_but_experts, linear(kDown, Format::kNvfp4), "excludes it");
  EXPECT_EQ(check_error(all_but_experts, linear("model.experts.1", Format::kNvfp4)), "");
}

using QuantizationFiles = FolderTest;

TEST_F(QuantizationFiles, HfQuantConfigIsReadToo) {
  write("hf_quant_config.json", R"({"producer": {"name": "modelopt"}, "quantization": {
      "quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]}})");
  const JsonFile plain = JsonFile::parse("config.json", "{}");
  const QuantizationConfig config = QuantizationConfig::load(folder_, plain);
  EXPECT_EQ(config.method(), "modelopt");
  EXPECT_CONTRADICTION(config, linear("lm_head", Format::kNvfp4), "hf_quant_config.json");
  const JsonFile other = JsonFile::parse(
      "config.json",
      R"({"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}})");
  EXPECT_ERROR(QuantizationConfig::load(folder_, other),
               "config.json: quantization_config says \"FP8\"");
  write("hf_quant_config.json", "{}");
  EXPECT_ERROR(QuantizationConfig::load(folder_, plain), "quantization is missing");
}

TEST(QuantizationConfig, SaysWhetherTheCacheIsFp8) {
  const std::string modelopt = R"({"quant_method": "modelopt", "quant_algo": "NVFP4")";
  const std::string scheme = R"("kv_cache_scheme": {"num_bits": 8, "type": "float"})";
  EXPECT_FALSE(parse(modelopt + "}").wants_fp8_cache());
  EXPECT_FALSE(parse(modelopt + R"(, "kv_cache_quant_algo": null})").wants_fp8_cache());
  EXPECT_TRUE(parse(modelopt + R"(, "kv_cache_quant_algo": "FP8"})").wants_fp8_cache());
  EXPECT_TRUE(parse(modelopt + ", " + scheme + "}").wants_fp8_cache());
  EXPECT_TRUE(
      parse(R"({"quant_method": "compressed-tensors", "config_groups": {}, )" + scheme + "}")
          .wants_fp8_cache());
}

}  // namespace
}  // namespace nibble
