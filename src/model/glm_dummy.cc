#include "model/glm_dummy.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "base/numbers.h"
#include "quant/nvfp4.h"

namespace nibble {
namespace {

constexpr int64_t kCodeBytes = int64_t(32) << 20;
constexpr int64_t kPartBytes = int64_t(8) << 20;  // of codes; a larger matrix has several parts
constexpr int64_t kNormals = int64_t(4) << 20;
constexpr int64_t kNormalsOfAPart = int64_t(1) << 20;
constexpr float kCodeRms = 2.926f;  // of E2M1's 16 values, each as likely

struct Buffers {
  std::vector<uint64_t> codes = std::vector<uint64_t>(kCodeBytes / 8);
  std::vector<uint8_t> ones = std::vector<uint8_t>(2 * kPartBytes / nvfp4::kBlock, 0x38);  // E4M3
  std::map<int64_t, std::vector<uint16_t>> normals{};  // BF16, by 1 / variance
  std::vector<uint16_t> bf16_ones{};
  std::vector<float> f32_zeros{};
};

class DummyWriter {
 public:
  // `widest`: values of the longest vector.
  explicit DummyWriter(int64_t widest) : buffers_(std::make_shared<Buffers>()) {
    buffers_->bf16_ones.assign(size_t(widest), float_to_bf16(1));
    buffers_->f32_zeros.assign(size_t(widest), 0);
    std::mt19937_64 random(1);
    std::generate(buffers_->codes.begin(), buffers_->codes.end(), random);
  }

  Weight linear(const std::string& name, int64_t rows, int64_t cols, Use use = Use::kLinear,
                int64_t count = 1) {
    if (cols % nvfp4::kBlock != 0) return normal(name, rows, cols, cols, use, count);
    Weight w = weight(name, rows, cols, use, count);
    const int64_t most = std::max<int64_t>(1, kPartBytes / (cols / 2));
    for_each_part(w, most, [&](int64_t part_rows) {
      return WeightPart{.format = Format::kNvfp4,
                        .rows = part_rows,
                        .values = reinterpret_cast<const uint8_t*>(buffers_->codes.data()) +
                                  offset(kCodeBytes - part_rows * cols / 2, 64),
                        .block_scales = buffers_->ones.data(),
                        .global_scale = 1.0f / (kCodeRms * std::sqrt(float(cols)))};
    });
    return w;
  }

  // N(0, 1 / inverse_variance)
  Weight normal(const std::string& name, int64_t rows, int64_t cols, int64_t inverse_variance,
                Use use = Use::kLinear, int64_t count = 1) {
    const std::vector<uint16_t>& values = normals(inverse_variance);
    Weight w = weight(name, rows, cols, use, count);
    for_each_part(w, std::max<int64_t>(1, kNormalsOfAPart / cols), [&](int64_t part_rows) {
      return WeightPart{.format = Format::kBF16,
                        .rows = part_rows,
                        .values = reinterpret_cast<const uint8_t*>(
                            values.data() + offset(kNormals - part_rows * cols, 32))};
    });
    return w;
  }

  Weight ones(const std::string& name, int64_t cols) {
    return vector(name, cols, Format::kBF16, buffers_->bf16_ones.data());
  }
  Weight zeros(const std::string& name, int64_t cols) {
    return vector(name, cols, Format::kF32, buffers_->f32_zeros.data());
  }

 private:
  Weight vector(const std::string& name, int64_t cols, Format format, const void* values) {
    Weight w = weight(name, 1, cols, Use::kVector, 1);
    w.parts = {{.format = format, .rows = 1, .values = static_cast<const uint8_t*>(values)}};
    return w;
  }
  Weight weight(const std::string& name, int64_t rows, int64_t cols, Use use, int64_t count) {
    return {
        .name = name, .use = use, .count = count, .rows = rows, .cols = cols, .source = buffers_};
  }

  // Parts of at most `most` rows, none across two matrices of the stack.
  template <typename MakePart>
  static void for_each_part(Weight& w, int64_t most, MakePart make_part) {
    for (int64_t i = 0; i < w.count; ++i) {
      for (int64_t r = 0; r < w.rows; r += most) {
        w.parts.push_back(make_part(std::min(most, w.rows - r)));
      }
    }
  }

  // A random multiple of `step` in [0, last].
  int64_t offset(int64_t last, int64_t step) {
    return std::uniform_int_distribution<int64_t>(0, last / step)(random_) * step;
  }

  const std::vector<uint16_t>& normals(int64_t inverse_variance) {
    std::vector<uint16_t>& values = buffers_->normals[inverse_variance];
    if (values.empty()) {
      values.resize(kNormals);
      std::mt19937 random(uint32_t(inverse_variance) + 1);
      std::normal_distribution<float> normal(0, 1.0f / std::sqrt(float(inverse_variance)));
      for (uint16_t& v : values) v = float_to_bf16(normal(random));
    }
    return values;
  }

  std::shared_ptr<Buffers> buffers_;
  std::mt19937_64 random_{2};
};

void write_attention(DummyWriter& writer, const std::string& prefix, const GlmConfig& c,
                     GlmLayer& layer) {
  const MlaShape mla = c.mla();
  layer.qkv_a = writer.linear(prefix + "qkv_a_proj", c.q_rank + mla.record_dim(), c.hidden);
  layer.q_norm = writer.ones(prefix + "q_a_layernorm.weight", c.q_rank);
  layer.q_b = writer.linear(prefix + "q_b_proj", c.heads * mla.query_dim(), c.q_rank);
  layer.kv_norm = writer.ones(prefix + "kv_a_layernorm.weight", c.kv_rank);
  layer.kv_b = writer.linear(prefix + "kv_b_proj", c.nope_dim + c.value_dim, c.kv_rank,
                             Use::kLatentUp, c.heads);
  layer.kv_b.key_rows = c.nope_dim;
  layer.o = writer.linear(prefix + "o_proj", c.hidden, int64_t(c.heads) * c.value_dim);
}

GlmFeedForward write_feed_forward(DummyWriter& writer, const std::string& prefix, int64_t hidden,
                                  int64_t width) {
  return {.gate_up = writer.linear(prefix + "gate_up_proj", 2 * width, hidden),
          .down = writer.linear(prefix + "down_proj", hidden, width)};
}

}  // namespace

GlmWeights dummy_weights(const GlmConfig& c) {
  DummyWriter writer(std::max({c.hidden, c.q_rank, c.kv_rank, c.num_experts}));
  GlmWeights weights;
  weights.embedding = writer.normal("model.embed_tokens", c.vocab, c.hidden, 1, Use::kTable);
  for (int l = 0; l < c.num_layers; ++l) {
    const std::string prefix = "model.layers." + std::to_string(l) + ".";
    GlmLayer layer;
    layer.attention_norm = writer.ones(prefix + "input_layernorm.weight", c.hidden);
    write_attention(writer, prefix + "self_attn.", c, layer);
    layer.feed_forward_norm = writer.ones(prefix + "post_attention_layernorm.weight", c.hidden);
    if (c.is_dense(l)) {
      layer.feed_forward = write_feed_forward(writer, prefix + "mlp.", c.hidden, c.dense_dim);
    } else {
      layer.router =
          writer.normal(prefix + "mlp.gate", c.num_experts, c.hidden, c.hidden, Use::kRouter);
      layer.router_bias = writer.zeros(prefix + "mlp.gate.e_score_correction_bias", c.num_experts);
      layer.experts_gate_up = writer.linear(prefix + "mlp.experts.gate_up_proj", 2 * c.expert_dim,
                                            c.hidden, Use::kGatedExperts, c.num_experts);
      layer.experts_down = writer.linear(prefix + "mlp.experts.down_proj", c.hidden, c.expert_dim,
                                         Use::kExperts, c.num_experts);
      layer.feed_forward = write_feed_forward(writer, prefix + "mlp.shared_experts.", c.hidden,
                                              int64_t(c.expert_dim) * c.shared_experts);
    }
    weights.layers.push_back(std::move(layer));
  }
  weights.final_norm = writer.ones("model.norm.weight", c.hidden);
  weights.lm_head = writer.normal("lm_head", c.vocab, c.hidden, c.hidden, Use::kHead);
  return weights;
}

}  // namespace nibble
