#include "model/glm_config.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace nibble {
namespace {

const char* kPocket = NIBBLE_SOURCE_DIR "/models/pocket";

nlohmann::json pocket() {
  return JsonFile::load(std::string(kPocket) + "/config.json").root();
}

GlmConfig parse(const nlohmann::json& json) {
  return GlmConfig::parse(JsonFile::parse("config.json", json.dump()));
}

// The message of the error that `json` gives; empty without one.
std::string error_of(const nlohmann::json& json) {
  try {
    parse(json);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(GlmConfig, ReadsThePocketModel) {
  const GlmConfig c = GlmConfig::load(kPocket);
  EXPECT_EQ(c.num_layers, 6);
  EXPECT_EQ(c.dense_layers, 1);
  EXPECT_EQ(c.mtp_layers, 1);
  EXPECT_EQ(c.hidden, 256);
  EXPECT_EQ(c.num_experts, 16);
  EXPECT_EQ(c.top_k, 4);
  EXPECT_EQ(c.mla().record_dim(), 576);
  EXPECT_FLOAT_EQ(c.routed_scaling, 1.8f);
  EXPECT_FLOAT_EQ(c.rope_theta, 1e6f);
  EXPECT_EQ(c.eos_token_ids, (std::vector<int32_t>{6108, 6115, 6117}));
}

TEST(GlmConfig, AcceptsWhatOtherToolsWrite) {
  auto json = pocket();
  json.erase("rope_theta");
  EXPECT_FLOAT_EQ(parse(json).rope_theta, 1e6f);  // in rope_parameters
  json.erase("rope_parameters");
  json["rope_scaling"] = {{"rope_theta", 5e5}, {"rope_type", "default"}};
  EXPECT_FLOAT_EQ(parse(json).rope_theta, 5e5f);

  json = pocket();
  json.erase("mlp_layer_types");
  EXPECT_EQ(parse(json).dense_layers, 1);
  json = pocket();
  json.erase("first_k_dense_replace");
  EXPECT_EQ(parse(json).dense_layers, 1);

  json = pocket();
  json.erase("n_routed_experts");
  json["num_local_experts"] = 12;
  EXPECT_EQ(parse(json).num_experts, 12);

  json = pocket();
  json["eos_token_id"] = 7;
  EXPECT_EQ(parse(json).eos_token_ids, std::vector<int32_t>{7});
  json["rope_scaling"] = nullptr;
  json["num_nextn_predict_layers"] = 0;
  json["scoring_func"] = "sigmoid";
  EXPECT_EQ(parse(json).mtp_layers, 0);
}

TEST(GlmConfig, EveryFieldThatIsMissingIsNamed) {
  for (const char* key : {"model_type", "vocab_size", "hidden_size", "intermediate_size",
                          "moe_intermediate_size", "num_hidden_layers", "num_attention_heads",
                          "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
                          "v_head_dim", "n_routed_experts", "num_experts_per_tok",
                          "routed_scaling_factor", "rms_norm_eps", "max_position_embeddings"}) {
    auto json = pocket();
    json.erase(key);
    EXPECT_NE(error_of(json).find(key), std::string::npos) << key << ": " << error_of(json);
    EXPECT_NE(error_of(json).find("config.json"), std::string::npos);
  }
}

TEST(GlmConfig, AbsurdValuesAreRefused) {
  for (const auto& [key, value] : std::vector<std::pair<std::string, nlohmann::json>>{
           {"hidden_size", 0},
           {"hidden_size", -256},
           {"hidden_size", 1e30},
           {"hidden_size", "256"},
           {"hidden_size", 256.5},
           {"num_hidden_layers", 1000000},
           {"vocab_size", 9223372036854775807},
           {"qk_rope_head_dim", 63},
           {"num_experts_per_tok", 17},
           {"rms_norm_eps", -1},
           {"rope_theta", 0},
           {"eos_token_id", 6144},
           {"eos_token_id", nlohmann::json::array({-1})},
           {"mlp_layer_types", nlohmann::json::array({"dense"})},
           {"first_k_dense_replace", 2},
           {"model_type", "llama"},
           {"hidden_act", "gelu"},
           {"scoring_func", "softmax"},
           {"n_group", 2},
           {"attention_bias", true},
           {"tie_word_embeddings", true},
           {"rope_interleave", false},
           {"rope_scaling", {{"rope_type", "yarn"}}},
           {"partial_rotary_factor", 0.5},
           {"n_shared_experts", 0}}) {
    auto json = pocket();
    json[key] = value;
    EXPECT_NE(error_of(json), "") << key << " = " << value;
  }
}

TEST(GlmConfig, MoreExpertsATokenThanBackendsChooseAreRefused) {
  auto json = pocket();
  json["n_routed_experts"] = 64;
  json["num_experts_per_tok"] = 32;
  EXPECT_EQ(parse(json).top_k, 32);
  json["num_experts_per_tok"] = 33;
  EXPECT_NE(error_of(json).find("num_experts_per_tok"), std::string::npos) << error_of(json);
}

}  // namespace
}  // namespace nibble
