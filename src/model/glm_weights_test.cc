#include "model/glm_weights.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/error.h"
#include "base/numbers.h"
#include "checkpoint/test_files.h"
#include "quant/nvfp4.h"

namespace nibble {
namespace {

// Two layers, the second with three experts.
GlmConfig tiny_config() {
  GlmConfig c;
  c.num_layers = 2;
  c.dense_layers = 1;
  c.hidden = 32;
  c.vocab = 10;
  c.heads = 2;
  c.q_rank = 16;
  c.kv_rank = 16;
  c.nope_dim = 8;
  c.rope_dim = 4;
  c.value_dim = 8;
  c.dense_dim = 48;
  c.expert_dim = 16;
  c.num_experts = 3;
  c.shared_experts = 1;
  c.top_k = 2;
  return c;
}

void add_attention(FileBuilder& file, const std::string& p) {
  file.add_bf16(p + "input_layernorm.weight", {32});
  file.add_bf16(p + "post_attention_layernorm.weight", {32});
  file.add_bf16(p + "self_attn.q_a_proj.weight", {16, 32});
  file.add_bf16(p + "self_attn.q_a_layernorm.weight", {16});
  file.add_bf16(p + "self_attn.q_b_proj.weight", {24, 16});
  file.add_bf16(p + "self_attn.kv_a_proj_with_mqa.weight", {20, 32});
  file.add_bf16(p + "self_attn.kv_a_layernorm.weight", {16});
  file.add_bf16(p + "self_attn.kv_b_proj.weight", {32, 16});
  file.add_bf16(p + "self_attn.o_proj.weight", {32, 16});
}

void add_mlp(FileBuilder& file, const std::string& p, int64_t width, bool with_down = true) {
  file.add_bf16(p + "gate_proj.weight", {width, 32});
  file.add_bf16(p + "up_proj.weight", {width, 32});
  if (with_down) file.add_bf16(p + "down_proj.weight", {32, width});
}

FileBuilder tiny_file(bool packed_experts, bool with_dense_down = true) {
  FileBuilder file;
  file.add_bf16("model.embed_tokens.weight", {10, 32});
  file.add_bf16("model.norm.weight", {32});
  file.add_bf16("lm_head.weight", {10, 32});
  add_attention(file, "model.layers.0.");
  add_mlp(file, "model.layers.0.mlp.", 48, with_dense_down);
  add_attention(file, "model.layers.1.");
  const std::string mlp = "model.layers.1.mlp.";
  file.add_bf16(mlp + "gate.weight", {3, 32});
  file.add(mlp + "gate.e_score_correction_bias", "F32", {3}, std::vector<uint8_t>(12));
  add_mlp(file, mlp + "shared_experts.", 16);
  if (packed_experts) {
    file.add_bf16(mlp + "experts.gate_up_proj", {3, 32, 32});
    file.add_bf16(mlp + "experts.down_proj", {3, 32, 16});
  } else {
    for (int e = 0; e < 3; ++e) add_mlp(file, mlp + "experts." + std::to_string(e) + ".", 16);
  }
  return file;
}

std::string load_error(FileBuilder file, const GlmConfig& config) {
  const auto& bytes = file.finish();
  try {
    GlmWeights::load(Checkpoint::parse("tiny", bytes.data(), bytes.size()), config);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(GlmWeights, MergesProjectionsAndStacksExperts) {
  FileBuilder file = tiny_file(false);
  const auto& bytes = file.finish();
  const Checkpoint checkpoint = Checkpoint::parse("tiny", bytes.data(), bytes.size());
  const GlmWeights weights = GlmWeights::load(checkpoint, tiny_config());
  const GlmLayer& layer = weights.layers[1];
  EXPECT_EQ(layer.qkv_a.rows, 16 + 20);
  EXPECT_EQ(layer.kv_b.count, 2);
  EXPECT_EQ(layer.kv_b.rows, 16);
  EXPECT_EQ(layer.experts_gate_up.count, 3);
  EXPECT_EQ(layer.experts_gate_up.total_rows(), 3 * 32);

  // Row 5 of expert 2's up half is row 5 of its up_proj.
  std::vector<float> row(32);
  decode_row(layer.experts_gate_up, 2 * 32 + 16 + 5, row.data());
  const StoredTensor* up = checkpoint.find("model.layers.1.mlp.experts.2.up_proj.weight");
  uint16_t bits;
  std::memcpy(&bits, up->data + (5 * 32 + 3) * 2, 2);
  EXPECT_EQ(row[3], bf16_to_float(bits));
}

TEST(GlmWeights, PackedExpertsAreTheSameStack) {
  FileBuilder file = tiny_file(true);
  const auto& bytes = file.finish();
  const GlmWeights weights =
      GlmWeights::load(Checkpoint::parse("tiny", bytes.data(), bytes.size()), tiny_config());
  EXPECT_EQ(weights.layers[1].experts_gate_up.total_rows(), 3 * 32);
  EXPECT_EQ(weights.layers[1].experts_gate_up.parts.size(), 1u);
  EXPECT_EQ(weights.layers[1].experts_down.cols, 16);
}

TEST(GlmWeights, WrongTensorsAreNamed) {
  EXPECT_EQ(load_error(tiny_file(false), tiny_config()), "");
  GlmConfig config = tiny_config();
  config.num_experts = 4;
  EXPECT_NE(load_error(tiny_file(false), config).find("mlp.gate.weight"), std::string::npos);
  config = tiny_config();
  config.num_layers = 3;
  EXPECT_NE(load_error(tiny_file(false), config).find("model.layers.2.input_layernorm.weight"),
            std::string::npos);
  config = tiny_config();
  config.num_layers = 1;
  EXPECT_NE(load_error(tiny_file(false), config).find("num_hidden_layers is 1"), std::string::npos);
  config = tiny_config();
  config.vocab = 11;
  const std::string message = load_error(tiny_file(false), config);
  EXPECT_NE(message.find("model.embed_tokens.weight"), std::string::npos) << message;
  EXPECT_NE(message.find("[10, 32]"), std::string::npos) << message;
  EXPECT_NE(message.find("[11, 32]"), std::string::npos) << message;
}

TEST(GlmWeights, AnnouncedMtpLayerMayBeMissingOrThere) {
  GlmConfig config = tiny_config();
  config.mtp_layers = 1;
  EXPECT_EQ(load_error(tiny_file(false), config), "");
  FileBuilder file = tiny_file(false);
  file.add_bf16("model.layers.2.enorm.weight", {32});
  EXPECT_EQ(load_error(file, config), "");
}

TEST(GlmWeights, Nvfp4IsDecidedFromTheTensors) {
  FileBuilder file = tiny_file(false, /*with_dense_down=*/false);
  const std::string name = "model.layers.0.mlp.down_proj";
  std::vector<float> values(48);
  for (int k = 0; k < 48; ++k) values[size_t(k)] = float(k - 20) / 7;
  const float global = nvfp4::global_scale_of(4);
  std::vector<uint8_t> codes(32 * 24), scales(32 * 3), scale2(4);
  for (int r = 0; r < 32; ++r) {
    nvfp4::encode_row(values.data(), global, 48, codes.data() + r * 24, scales.data() + r * 3);
  }
  std::memcpy(scale2.data(), &global, 4);
  file.add(name + ".weight", "U8", {32, 24}, codes);
  file.add(name + ".weight_scale", "F8_E4M3", {32, 3}, scales);
  file.add(name + ".weight_scale_2", "F32", {}, scale2);
  const auto& bytes = file.finish();
  const GlmWeights weights =
      GlmWeights::load(Checkpoint::parse("tiny", bytes.data(), bytes.size()), tiny_config());
  std::vector<float> row(48);
  decode_row(weights.layers[0].feed_forward.down, 7, row.data());
  for (int k = 0; k < 48; ++k) EXPECT_NEAR(row[size_t(k)], values[size_t(k)], 0.7) << k;
  EXPECT_NEAR(row[47], 27.0 / 7, 27.0 / 7 * 0x1p-4);  // the block scale is rounded to E4M3
}

}  // namespace
}  // namespace nibble
