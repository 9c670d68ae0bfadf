#include "model/glm_config.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"

namespace nibble {
namespace {

constexpr int64_t kMaxDim = 1 << 20;

void expect_string(const JsonFile& file, const std::string& key, const std::string& expected) {
  const auto value = file.string(key);
  if (value && *value != expected) {
    file.fail(key, "is \"" + *value + "\"; only \"" + expected + "\" is supported");
  }
}

void expect_integer(const JsonFile& file, const std::string& key, int64_t expected) {
  const auto value = file.integer(key, INT64_MIN, INT64_MAX);
  if (value && *value != expected) {
    file.fail(key, "is " + std::to_string(*value) + "; only " + std::to_string(expected) +
                       " is supported");
  }
}

void expect_boolean(const JsonFile& file, const std::string& key, bool expected) {
  const auto value = file.boolean(key);
  if (value && *value != expected) {
    file.fail(key, std::string("is ") + (*value ? "true" : "false") + "; only " +
                       (expected ? "true" : "false") + " is supported");
  }
}

// rope_theta stands at the top, or where transformers 5 or 4 put rope settings.
double rope_theta(const JsonFile& file) {
  for (const char* key : {"rope_theta", "rope_parameters.rope_theta", "rope_scaling.rope_theta"}) {
    if (const auto theta = file.number(key, 1.0, 1e12)) return *theta;
  }
  file.fail("rope_theta", "is missing (neither there nor in rope_parameters)");
}

// The forward pass is the one of these values; anything else would give silent nonsense.
void refuse_other_models(const JsonFile& file) {
  const auto type = file.string("model_type");
  if (!type) file.fail("model_type", "is missing; \"glm4_moe_lite\" is supported");
  expect_string(file, "model_type", "glm4_moe_lite");
  expect_string(file, "hidden_act", "silu");
  expect_string(file, "scoring_func", "sigmoid");
  expect_string(file, "topk_method", "noaux_tc");
  expect_integer(file, "n_group", 1);
  expect_integer(file, "topk_group", 1);
  expect_boolean(file, "attention_bias", false);
  expect_boolean(file, "tie_word_embeddings", false);
  expect_boolean(file, "rope_interleave", true);
  for (const char* key :
       {"rope_parameters.rope_type", "rope_scaling.rope_type", "rope_scaling.type"}) {
    expect_string(file, key, "default");
  }
  for (const char* key : {"partial_rotary_factor", "rope_parameters.partial_rotary_factor"}) {
    const auto factor = file.number(key, 0, 1);
    if (factor && *factor != 1) file.fail(key, "must be 1");
  }
}

int dense_layers(const JsonFile& file, int num_layers) {
  const auto first = file.integer("first_k_dense_replace", 0, num_layers);
  if (!file.has("mlp_layer_types")) {
    if (!first) file.fail("first_k_dense_replace", "is missing (and mlp_layer_types, too)");
    return int(*first);
  }
  const auto& types = file.root()["mlp_layer_types"];
  if (!types.is_array() || int(types.size()) < num_layers) {
    file.fail("mlp_layer_types", "must be a list with an entry for each layer");
  }
  int dense = 0;
  while (dense < num_layers && types[size_t(dense)] == "dense") ++dense;
  for (int l = dense; l < num_layers; ++l) {
    if (types[size_t(l)] != "sparse") {
      file.fail("mlp_layer_types", "must be \"dense\" for the first layers, then \"sparse\"");
    }
  }
  if (first && *first != dense) {
    file.fail("first_k_dense_replace", "contradicts mlp_layer_types");
  }
  return dense;
}

int64_t number_of_experts(const JsonFile& file) {
  for (const char* key : {"n_routed_experts", "num_local_experts", "num_experts"}) {
    if (const auto n = file.integer(key, 1, 4096)) return *n;
  }
  file.fail("n_routed_experts", "is missing");
}

std::vector<int32_t> eos_token_ids(const JsonFile& file, int vocab) {
  std::vector<int32_t> ids;
  for (const int64_t id : file.integers("eos_token_id", 0, vocab - 1)) ids.push_back(int32_t(id));
  return ids;
}

// The number with the fewest digits that is this float: 1.8, not 1.79999995.
double shortest(float value) {
  char digits[64];
  const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
  double number = 0;
  std::from_chars(digits, end, number);
  return number;
}

}  // namespace

GlmConfig GlmConfig::parse(const JsonFile& file) {
  refuse_other_models(file);
  const auto size = [&](const char* key) { return int(file.required_integer(key, 1, kMaxDim)); };
  GlmConfig c;
  c.num_layers = int(file.required_integer("num_hidden_layers", 1, 1024));
  c.dense_layers = nibble::dense_layers(file, c.num_layers);
  c.mtp_layers = int(file.integer("num_nextn_predict_layers", 0, 16).value_or(0));
  c.hidden = size("hidden_size");
  c.vocab = int(file.required_integer("vocab_size", 1, 1 << 24));
  c.heads = int(file.required_integer("num_attention_heads", 1, 1024));
  c.q_rank = size("q_lora_rank");
  c.kv_rank = size("kv_lora_rank");
  c.nope_dim = size("qk_nope_head_dim");
  c.rope_dim = size("qk_rope_head_dim");
  c.value_dim = size("v_head_dim");
  if (c.rope_dim % 2 != 0) file.fail("qk_rope_head_dim", "must be even");
  if (c.dense_layers > 0) c.dense_dim = size("intermediate_size");
  if (c.dense_layers < c.num_layers) {
    c.expert_dim = size("moe_intermediate_size");
    c.num_experts = int(number_of_experts(file));
    c.shared_experts = int(file.integer("n_shared_experts", 0, 64).value_or(1));
    c.top_k = int(file.required_integer("num_experts_per_tok", 1,
                                        std::min(c.num_experts, GlmConfig::kMostExpertsAToken)));
    c.normalize_top_k = file.boolean("norm_topk_prob").value_or(true);
    c.routed_scaling = float(file.required_number("routed_scaling_factor", 0, 1e6));
    if (c.shared_experts == 0) file.fail("n_shared_experts", "is 0; at least 1 is supported");
  }
  c.rope_theta = float(nibble::rope_theta(file));
  c.norm_eps = float(file.required_number("rms_norm_eps", 0, 1));
  c.max_positions = int(file.required_integer("max_position_embeddings", 1, 1 << 26));
  c.eos_token_ids = nibble::eos_token_ids(file, c.vocab);
  c.quantization = QuantizationConfig::parse(file);
  return c;
}

nlohmann::ordered_json GlmConfig::to_json() const {
  const double theta = shortest(rope_theta);
  std::vector<std::string> layer_types(size_t(num_layers), "sparse");
  std::fill_n(layer_types.begin(), dense_layers, "dense");
  return {{"architectures", {"Glm4MoeLiteForCausalLM"}},
          {"model_type", "glm4_moe_lite"},
          {"dtype", "bfloat16"},
          {"vocab_size", vocab},
          {"hidden_size", hidden},
          {"intermediate_size", dense_dim},
          {"moe_intermediate_size", expert_dim},
          {"num_hidden_layers", num_layers},
          {"num_attention_heads", heads},
          {"num_key_value_heads", heads},
          {"head_dim", rope_dim},
          {"q_lora_rank", q_rank},
          {"kv_lora_rank", kv_rank},
          {"qk_nope_head_dim", nope_dim},
          {"qk_rope_head_dim", rope_dim},
          {"v_head_dim", value_dim},
          {"n_routed_experts", num_experts},
          {"num_experts_per_tok", top_k},
          {"n_shared_experts", shared_experts},
          {"first_k_dense_replace", dense_layers},
          {"mlp_layer_types", layer_types},
          {"num_nextn_predict_layers", 0},
          {"norm_topk_prob", normalize_top_k},
          {"routed_scaling_factor", shortest(routed_scaling)},
          {"n_group", 1},
          {"topk_group", 1},
          {"topk_method", "noaux_tc"},
          {"rope_theta", theta},
          {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", theta}}},
          {"rope_interleave", true},
          {"partial_rotary_factor", 1.0},
          {"rms_norm_eps", shortest(norm_eps)},
          {"max_position_embeddings", max_positions},
          {"hidden_act", "silu"},
          {"attention_bias", false},
          {"attention_dropout", 0.0},
          {"tie_word_embeddings", false},
          {"use_cache", true},
          {"eos_token_id", eos_token_ids}};
}

GlmConfig GlmConfig::load(const std::filesystem::path& folder) {
  const JsonFile file = JsonFile::load(folder / "config.json");
  GlmConfig config = parse(file);
  config.quantization = QuantizationConfig::load(folder, file);
  // What ends an answer is generation_config.json's to say, where it says it.
  const auto generation = folder / "generation_config.json";
  if (std::filesystem::exists(generation)) {
    const auto ids = nibble::eos_token_ids(JsonFile::load(generation), config.vocab);
    if (!ids.empty()) config.eos_token_ids = ids;
  }
  return config;
}

}  // namespace nibble
