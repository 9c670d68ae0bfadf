// GlmConfig: config.json of a glm4_moe_lite checkpoint, every field checked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "checkpoint/json_file.h"
#include "checkpoint/quantization_config.h"

namespace nibble {

struct GlmConfig {
  int num_layers = 0;
  int dense_layers = 0;  // the first ones; the rest are mixtures of experts
  int mtp_layers = 0;    // announced; their tensors may be missing
  int hidden = 0;
  int vocab = 0;
  int heads = 0;
  int q_rank = 0;
  int kv_rank = 0;
  int nope_dim = 0;
  int rope_dim = 0;
  int value_dim = 0;
  int dense_dim = 0;                             // width of a dense feed-forward
  int expert_dim = 0;                            // width of one expert
  static constexpr int kMostExpertsAToken = 32;  // backends choose them in a vector's lanes
  int num_experts = 0;
  int shared_experts = 0;
  int top_k = 0;
  bool normalize_top_k = true;
  float routed_scaling = 1.0f;
  float rope_theta = 0;
  float norm_eps = 0;             // of all norms but:
  float latent_norm_eps = 1e-6f;  // q_a and kv_a norms, which transformers builds with its default
  int max_positions = 0;
  std::vector<int32_t> eos_token_ids{};
  QuantizationConfig quantization{};

  // Throws Error that names the file, the key and what would be right: a model type other than
  // glm4_moe_lite, a missing or absurd size, a feature the forward pass lacks (another scoring
  // function, rope scaling, attention bias, expert groups, tied embeddings, half-split rope), and
  // what QuantizationConfig refuses. load() also reads generation_config.json and
  // hf_quant_config.json.
  static GlmConfig load(const std::filesystem::path& folder);
  static GlmConfig parse(const JsonFile& file);

  // What parse() reads it from, but for the quantization. Without an announced MTP layer.
  nlohmann::ordered_json to_json() const;

  bool is_dense(int layer) const { return layer < dense_layers; }
  MlaShape mla() const {
    return {.heads = heads,
            .nope_dim = nope_dim,
            .rope_dim = rope_dim,
            .value_dim = value_dim,
            .latent_dim = kv_rank,
            .rope_theta = rope_theta,
            .norm_eps = latent_norm_eps};
  }
  RouterShape router() const {
    return {.num_experts = num_experts,
            .top_k = top_k,
            .scaling = routed_scaling,
            .normalize = normalize_top_k};
  }
};

}  // namespace nibble
