#include "model/glm_weights.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <span>

#include "base/error.h"
#include "base/log.h"
#include "quant/nvfp4.h"

namespace nibble {
namespace {

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

// Takes weights out of a checkpoint, by name; decides every matrix's format from the tensors that
// are there.
class WeightReader {
 public:
  explicit WeightReader(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  bool has(const std::string& name) const { return checkpoint_.find(name) != nullptr; }

  // `rows` x `cols` stacked from the named matrices, each with its share of the rows.
  Weight matrix(const std::string& name, Use use, int64_t cols,
                const std::vector<std::pair<std::string, int64_t>>& names) {
    Weight w{.name = name, .use = use, .cols = cols, .source = checkpoint_.mapping()};
    for (const auto& [part, rows] : names) {
      w.parts.push_back(read_part(part, {rows, cols}));
      w.rows += rows;
    }
    return w;
  }
  Weight linear(const std::string& name, int64_t rows, int64_t cols) {
    return matrix(name, Use::kLinear, cols, {{name, rows}});
  }
  Weight vector(const std::string& name, int64_t cols) {
    Weight w{.name = name,
             .use = Use::kVector,
             .rows = 1,
             .cols = cols,
             .source = checkpoint_.mapping()};
    w.parts = {read_values(name, {cols}, 1)};
    return w;
  }

  // E x [rows, cols]: packed in one tensor `packed`, or one matrix an expert; names(e) gives the
  // matrices of expert e.
  Weight experts(const std::string& packed, int64_t count, int64_t rows, int64_t cols,
                 const std::function<std::vector<std::string>(int64_t)>& names) {
    Weight w{.name = packed,
             .use = Use::kExperts,
             .count = count,
             .rows = rows,
             .cols = cols,
             .source = checkpoint_.mapping()};
    if (has(packed)) {
      w.parts = {read_values(packed, {count, rows, cols}, count * rows)};
      return w;
    }
    for (int64_t e = 0; e < count; ++e) {
      const auto matrices = names(e);
      const int64_t share = rows / int64_t(matrices.size());
      for (const std::string& name : matrices) w.parts.push_back(read_part(name, {share, cols}));
    }
    return w;
  }

  // Says once which tensors nothing asked for. Those of announced MTP layers are known.
  void report_unused(const GlmConfig& config) const {
    std::vector<std::string> unused;
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      if (!used_.contains(name) && !is_mtp(name, config)) unused.push_back(name);
    }
    if (unused.empty()) return;
    std::string text;
    for (size_t i = 0; i < unused.size() && i < 8; ++i) text += (i ? ", " : "") + unused[i];
    log_warning("the checkpoint has " + std::to_string(unused.size()) +
                " tensors that this model does not use: " + text +
                (unused.size() > 8 ? ", ..." : ""));
  }

 private:
  static bool is_mtp(const std::string& name, const GlmConfig& config) {
    for (int l = config.num_layers; l < config.num_layers + std::max(1, config.mtp_layers); ++l) {
      if (name.starts_with("model.layers." + std::to_string(l) + ".")) return true;
    }
    return false;
  }

  [[noreturn]] void fail(const std::string& name, const std::string& what) const {
    throw Error((checkpoint_.folder() / name).string() + ": " + what);
  }

  const StoredTensor& take(const std::string& name, std::span<const int64_t> shape) {
    const StoredTensor* tensor = checkpoint_.find(name);
    if (tensor == nullptr) fail(name, "the checkpoint has no such tensor");
    if (!std::equal(shape.begin(), shape.end(), tensor->shape.begin(), tensor->shape.end())) {
      fail(name,
           "shape " + shape_text(tensor->shape) + ", but config.json says " + shape_text(shape));
    }
    used_.insert(name);
    return *tensor;
  }

  // Plain values: BF16 or F32.
  WeightPart read_values(const std::string& name, std::vector<int64_t> shape, int64_t rows) {
    const StoredTensor& tensor = take(name, shape);
    if (tensor.dtype != DType::kBF16 && tensor.dtype != DType::kF32) {
      fail(name, "has a dtype that is not supported here; BF16 and F32 are");
    }
    return {.format = tensor.dtype == DType::kF32 ? Format::kF32 : Format::kBF16,
            .rows = rows,
            .values = tensor.data};
  }

  // `name`.weight as values, or as NVFP4 with its scales.
  WeightPart read_part(const std::string& name, std::vector<int64_t> shape) {
    const StoredTensor* found = checkpoint_.find(name + ".weight");
    if (found == nullptr || found->dtype != DType::kU8) {
      return read_values(name + ".weight", shape, shape[0]);
    }
    if (shape[1] % nvfp4::kBlock != 0)
      fail(name + ".weight", "NVFP4 needs columns in blocks of 16");
    const StoredTensor& codes = take(name + ".weight", std::vector{shape[0], shape[1] / 2});
    const StoredTensor& scales =
        take(name + ".weight_scale", std::vector{shape[0], shape[1] / nvfp4::kBlock});
    if (scales.dtype != DType::kF8E4M3) fail(name + ".weight_scale", "must be F8_E4M3");
    return {.format = Format::kNvfp4,
            .rows = shape[0],
            .values = codes.data,
            .block_scales = scales.data,
            .global_scale = read_scalar(name + ".weight_scale_2")};
  }

  float read_scalar(const std::string& name) {
    const StoredTensor* tensor = checkpoint_.find(name);
    if (tensor == nullptr) fail(name, "the checkpoint has no such tensor");
    if (tensor->dtype != DType::kF32 || tensor->num_elements() != 1) {
      fail(name, "must be one F32 value");
    }
    used_.insert(name);
    float value;
    std::memcpy(&value, tensor->data, sizeof(value));
    return value;
  }

  const Checkpoint& checkpoint_;
  std::set<std::string> used_;
};

GlmFeedForward read_feed_forward(WeightReader& reader, const std::string& prefix, int64_t hidden,
                                 int64_t width) {
  return {.gate_up = reader.matrix(prefix + "gate_up_proj", Use::kLinear, hidden,
                                   {{prefix + "gate_proj", width}, {prefix + "up_proj", width}}),
          .down = reader.linear(prefix + "down_proj", hidden, width)};
}

void read_attention(WeightReader& reader, const std::string& prefix, const GlmConfig& c,
                    GlmLayer& layer) {
  const MlaShape mla = c.mla();
  layer.qkv_a = reader.matrix(
      prefix + "qkv_a_proj", Use::kLinear, c.hidden,
      {{prefix + "q_a_proj", c.q_rank}, {prefix + "kv_a_proj_with_mqa", mla.record_dim()}});
  layer.q_norm = reader.vector(prefix + "q_a_layernorm.weight", c.q_rank);
  layer.q_b = reader.linear(prefix + "q_b_proj", c.heads * mla.query_dim(), c.q_rank);
  layer.kv_norm = reader.vector(prefix + "kv_a_layernorm.weight", c.kv_rank);
  const int64_t head_rows = c.nope_dim + c.value_dim;
  layer.kv_b = reader.matrix(prefix + "kv_b_proj", Use::kLatentUp, c.kv_rank,
                             {{prefix + "kv_b_proj", c.heads * head_rows}});
  layer.kv_b.count = c.heads;
  layer.kv_b.rows = head_rows;
  layer.o = reader.linear(prefix + "o_proj", c.hidden, c.heads * c.value_dim);
}

void read_experts(WeightReader& reader, const std::string& prefix, const GlmConfig& c,
                  GlmLayer& layer) {
  layer.router = reader.matrix(prefix + "gate", Use::kRouter, c.hidden,
                               {{prefix + "gate", c.num_experts}});
  layer.router_bias = reader.vector(prefix + "gate.e_score_correction_bias", c.num_experts);
  const auto expert = [&](int64_t e) { return prefix + "experts." + std::to_string(e) + "."; };
  layer.experts_gate_up = reader.experts(
      prefix + "experts.gate_up_proj", c.num_experts, 2 * c.expert_dim, c.hidden, [&](int64_t e) {
        return std::vector{expert(e) + "gate_proj", expert(e) + "up_proj"};
      });
  layer.experts_down =
      reader.experts(prefix + "experts.down_proj", c.num_experts, c.hidden, c.expert_dim,
                     [&](int64_t e) { return std::vector{expert(e) + "down_proj"}; });
  layer.feed_forward = read_feed_forward(reader, prefix + "shared_experts.", c.hidden,
                                         int64_t(c.expert_dim) * c.shared_experts);
}

}  // namespace

GlmWeights GlmWeights::load(const Checkpoint& checkpoint, const GlmConfig& c) {
  WeightReader reader(checkpoint);
  GlmWeights weights;
  weights.embedding =
      reader.matrix("model.embed_tokens", Use::kTable, c.hidden, {{"model.embed_tokens", c.vocab}});
  for (int l = 0; l < c.num_layers; ++l) {
    const std::string prefix = "model.layers." + std::to_string(l) + ".";
    GlmLayer layer;
    layer.attention_norm = reader.vector(prefix + "input_layernorm.weight", c.hidden);
    read_attention(reader, prefix + "self_attn.", c, layer);
    layer.feed_forward_norm = reader.vector(prefix + "post_attention_layernorm.weight", c.hidden);
    if (c.is_dense(l)) {
      layer.feed_forward = read_feed_forward(reader, prefix + "mlp.", c.hidden, c.dense_dim);
    } else {
      read_experts(reader, prefix + "mlp.", c, layer);
    }
    weights.layers.push_back(std::move(layer));
  }
  weights.final_norm = reader.vector("model.norm.weight", c.hidden);
  weights.lm_head = reader.linear("lm_head", c.vocab, c.hidden);
  reader.report_unused(c);
  return weights;
}

void GlmWeights::for_each(const std::function<void(Weight&)>& visit) {
  visit(embedding);
  for (GlmLayer& l : layers) {
    for (Weight* w : {&l.attention_norm, &l.qkv_a, &l.q_norm, &l.q_b, &l.kv_norm, &l.kv_b, &l.o,
                      &l.feed_forward_norm, &l.router, &l.router_bias, &l.experts_gate_up,
                      &l.experts_down, &l.feed_forward.gate_up, &l.feed_forward.down}) {
      if (!w->empty()) visit(*w);
    }
  }
  visit(final_norm);
  visit(lm_head);
}

int64_t GlmWeights::size_bytes() {
  int64_t bytes = 0;
  for_each([&](Weight& w) {
    for (const WeightPart& part : w.parts) bytes += storage_bytes(part.format, part.rows, w.cols);
  });
  return bytes;
}

void GlmWeights::upload(Backend& backend, const std::function<void(double)>& progress) {
  const double total = double(size_bytes());
  double done = 0;
  for_each([&](Weight& w) {
    w = backend.upload(w);
    for (const WeightPart& part : w.parts) {
      done += double(storage_bytes(part.format, part.rows, w.cols));
    }
    if (progress) progress(done / total);
  });
}

}  // namespace nibble
