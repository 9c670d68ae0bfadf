#include "model/glm_builtin.h"

namespace nibble {
namespace {

constexpr const char* kFlash = "glm-4.7-flash";
constexpr const char* kReap = "glm-4.7-flash-reap-23b";

}  // namespace

std::optional<GlmConfig> builtin_config(const std::string& name) {
  if (name != kFlash && name != kReap) return std::nullopt;
  return GlmConfig{.num_layers = 47,
                   .dense_layers = 1,
                   .hidden = 2048,
                   .vocab = 154880,
                   .heads = 20,
                   .q_rank = 768,
                   .kv_rank = 512,
                   .nope_dim = 192,
                   .rope_dim = 64,
                   .value_dim = 256,
                   .dense_dim = 10240,
                   .expert_dim = 1536,
                   .num_experts = name == kReap ? 48 : 64,
                   .shared_experts = 1,
                   .top_k = 4,
                   .routed_scaling = 1.8f,
                   .rope_theta = 1e6f,
                   .norm_eps = 1e-5f,
                   .max_positions = 202752,
                   .eos_token_ids = {154820, 154827, 154829}};
}

std::vector<std::string> builtin_config_names() {
  return {kFlash, kReap};
}

}  // namespace nibble
