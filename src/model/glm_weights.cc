#include "model/glm_weights.h"

#include <algorithm>
#include <array>
#include <memory>

#include "base/error.h"
#include "checkpoint/weight_reader.h"

namespace nibble {
namespace {

// A linear by its name in the checkpoint, and its share of the rows.
struct Share {
  std::string name{};
  int64_t rows = 0;
};

// `rows` x `cols` stacked from the named linears.
Weight stacked(WeightReader& reader, const std::string& name, int64_t cols,
               const std::vector<Share>& shares, bool is_listed = true) {
  Weight w{.name = name, .cols = cols, .mapped = true, .source = reader.checkpoint().mapping()};
  for (const Share& share : shares) {
    w.parts.push_back(reader.linear(share.name, share.rows, cols, is_listed));
    w.rows += share.rows;
  }
  return w;
}

Weight linear(WeightReader& reader, const std::string& name, int64_t rows, int64_t cols,
              bool is_listed = true) {
  return stacked(reader, name, cols, {{name, rows}}, is_listed);
}

Weight vector(WeightReader& reader, const std::string& name, int64_t cols) {
  return {.name = name,
          .use = Use::kVector,
          .rows = 1,
          .cols = cols,
          .parts = {reader.values(name, std::array{cols}, 1)},
          .source = reader.checkpoint().mapping()};
}

Weight table(WeightReader& reader, const std::string& name, int64_t rows, int64_t cols) {
  return {.name = name,
          .use = Use::kTable,
          .rows = rows,
          .cols = cols,
          .parts = {reader.table(name, rows, cols)},
          .source = reader.checkpoint().mapping()};
}

// E x [rows, cols]: packed in one tensor `packed`, or the linears names(e) of each expert e.
Weight experts(WeightReader& reader, const std::string& packed, int64_t count, int64_t rows,
               int64_t cols, const std::function<std::vector<std::string>(int64_t)>& names) {
  Weight w{.name = packed,
           .use = Use::kExperts,
           .count = count,
           .rows = rows,
           .cols = cols,
           .mapped = true,
           .source = reader.checkpoint().mapping()};
  if (reader.has(packed)) {
    w.parts = {reader.values(packed, std::array{count, rows, cols}, count * rows)};
    return w;
  }
  for (int64_t e = 0; e < count; ++e) {
    const auto matrices = names(e);
    const int64_t share = rows / int64_t(matrices.size());
    for (const std::string& name : matrices) {
      w.parts.push_back(reader.linear(name, share, cols, /*is_listed=*/true));
    }
  }
  return w;
}

// Of a layer that predicts one token more: it normalises an embedding beside the hidden state.
bool is_mtp(const std::string& name, const GlmConfig& config) {
  for (int l = config.num_layers; l < config.num_layers + std::max(1, config.mtp_layers); ++l) {
    if (name.starts_with("model.layers." + std::to_string(l) + ".")) return true;
  }
  return false;
}

// A layer after the last, unless it is of MTP, means that config.json has too few: the model would
// run and talk nonsense.
void check_last_layer(const Checkpoint& checkpoint, const GlmConfig& config) {
  const std::string next = "model.layers." + std::to_string(config.num_layers) + ".";
  if (checkpoint.find(next + "input_layernorm.weight") == nullptr) return;
  if (checkpoint.find(next + "enorm.weight") != nullptr) return;
  throw Error((checkpoint.folder() / "config.json").string() + ": num_hidden_layers is " +
              std::to_string(config.num_layers) + ", but the checkpoint has " + next +
              "* too, and they are no MTP layer");
}

GlmFeedForward read_feed_forward(WeightReader& reader, const std::string& prefix, int64_t hidden,
                                 int64_t width) {
  return {.gate_up = stacked(reader, prefix + "gate_up_proj", hidden,
                             {{prefix + "gate_proj", width}, {prefix + "up_proj", width}}),
          .down = linear(reader, prefix + "down_proj", hidden, width)};
}

void read_attention(WeightReader& reader, const std::string& prefix, const GlmConfig& c,
                    GlmLayer& layer) {
  const MlaShape mla = c.mla();
  layer.qkv_a =
      stacked(reader, prefix + "qkv_a_proj", c.hidden,
              {{prefix + "q_a_proj", c.q_rank}, {prefix + "kv_a_proj_with_mqa", mla.record_dim()}});
  layer.q_norm = vector(reader, prefix + "q_a_layernorm.weight", c.q_rank);
  layer.q_b = linear(reader, prefix + "q_b_proj", c.heads * mla.query_dim(), c.q_rank);
  layer.kv_norm = vector(reader, prefix + "kv_a_layernorm.weight", c.kv_rank);
  const int64_t head_rows = c.nope_dim + c.value_dim;
  layer.kv_b = linear(reader, prefix + "kv_b_proj", c.heads * head_rows, c.kv_rank);
  layer.kv_b.use = Use::kLatentUp;
  layer.kv_b.count = c.heads;
  layer.kv_b.rows = head_rows;
  layer.kv_b.key_rows = c.nope_dim;
  layer.o = linear(reader, prefix + "o_proj", c.hidden, c.heads * c.value_dim);
}

void read_experts(WeightReader& reader, const std::string& prefix, const GlmConfig& c,
                  GlmLayer& layer) {
  layer.router = linear(reader, prefix + "gate", c.num_experts, c.hidden, /*is_listed=*/false);
  layer.router.use = Use::kRouter;
  layer.router_bias = vector(reader, prefix + "gate.e_score_correction_bias", c.num_experts);
  const auto expert = [&](int64_t e) { return prefix + "experts." + std::to_string(e) + "."; };
  layer.experts_gate_up =
      experts(reader, prefix + "experts.gate_up_proj", c.num_experts, 2 * c.expert_dim, c.hidden,
              [&](int64_t e) {
                return std::vector{expert(e) + "gate_proj", expert(e) + "up_proj"};
              });
  layer.experts_gate_up.use = Use::kGatedExperts;
  layer.experts_down =
      experts(reader, prefix + "experts.down_proj", c.num_experts, c.hidden, c.expert_dim,
              [&](int64_t e) { return std::vector{expert(e) + "down_proj"}; });
  layer.feed_forward = read_feed_forward(reader, prefix + "shared_experts.", c.hidden,
                                         int64_t(c.expert_dim) * c.shared_experts);
}

}  // namespace

GlmWeights GlmWeights::load(const Checkpoint& checkpoint, const GlmConfig& c) {
  check_last_layer(checkpoint, c);
  WeightReader reader(checkpoint, c.quantization);
  GlmWeights weights;
  weights.embedding = table(reader, "model.embed_tokens", c.vocab, c.hidden);
  for (int l = 0; l < c.num_layers; ++l) {
    const std::string prefix = "model.layers." + std::to_string(l) + ".";
    GlmLayer layer;
    layer.attention_norm = vector(reader, prefix + "input_layernorm.weight", c.hidden);
    read_attention(reader, prefix + "self_attn.", c, layer);
    layer.feed_forward_norm = vector(reader, prefix + "post_attention_layernorm.weight", c.hidden);
    if (c.is_dense(l)) {
      layer.feed_forward = read_feed_forward(reader, prefix + "mlp.", c.hidden, c.dense_dim);
    } else {
      read_experts(reader, prefix + "mlp.", c, layer);
    }
    weights.layers.push_back(std::move(layer));
  }
  weights.final_norm = vector(reader, "model.norm.weight", c.hidden);
  weights.lm_head = linear(reader, "lm_head", c.vocab, c.hidden, /*is_listed=*/false);
  weights.lm_head.use = Use::kHead;
  reader.report_unused([&](const std::string& name) { return is_mtp(name, c); });
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
  for_each([&](Weight& w) { bytes += storage_bytes(w); });
  return bytes;
}

namespace {

bool are_alike(const WeightPart& a, const WeightPart& b) {
  return a.format == b.format && a.group_size == b.group_size &&
         (a.input_scales == nullptr) == (b.input_scales == nullptr);
}

// Puts the matrix on top of the stack and leaves it empty.
void append(Weight& matrix, Weight& stack) {
  stack.parts.insert(stack.parts.end(), matrix.parts.begin(), matrix.parts.end());
  stack.source = std::make_shared<std::array<std::shared_ptr<const void>, 2>>(
      std::array{stack.source, matrix.source});
  stack.count += 1;
  matrix = {};
}

// The shared expert costs stages of its own where it is not one of the experts.
void join_shared_expert(GlmLayer& layer) {
  const auto fits = [](const Weight& matrix, const Weight& stack) {
    return !stack.empty() && matrix.rows == stack.rows && matrix.cols == stack.cols &&
           std::ranges::all_of(matrix.parts, [&](const WeightPart& part) {
             return std::ranges::all_of(
                 stack.parts, [&](const WeightPart& other) { return are_alike(part, other); });
           });
  };
  GlmFeedForward& shared = layer.feed_forward;
  if (!fits(shared.gate_up, layer.experts_gate_up) || !fits(shared.down, layer.experts_down))
    return;
  append(shared.gate_up, layer.experts_gate_up);
  append(shared.down, layer.experts_down);
}

}  // namespace

void GlmWeights::upload(Backend& backend, const std::function<void(double)>& progress) {
  for (GlmLayer& layer : layers) join_shared_expert(layer);
  const double total = double(size_bytes());
  double done = 0;
  for_each([&](Weight& w) {
    w = backend.upload(w);
    done += double(storage_bytes(w));
    if (progress) progress(done / total);
  });
}

}  // namespace nibble
