// What `nibble serve` can be told about serving; filled in by apps/.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace nibble {

// Where thoughts go in messages and deltas: vLLM reads and writes `reasoning`, llama.cpp and the
// clients made for it `reasoning_content`.
enum class ReasoningField { kBoth, kReasoning, kReasoningContent, kNone };

// Sampling of requests that do not say: see generation_defaults.h.
struct GenerationDefaults {
  float temperature = 1.0f;
  float top_p = 1.0f;
  int top_k = 0;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  std::optional<int> max_new_tokens{};  // also caps what requests ask for
};

struct CorsOptions {
  std::vector<std::string> allowed_origins{};  // empty: no cross-origin access; "*": all
  std::vector<std::string> allowed_methods{"*"};
  std::vector<std::string> allowed_headers{"*"};
  bool allow_credentials = false;
};

struct ServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;  // 0: any free one
  bool handle_signals = true;
  int drain_timeout_s = 300;
  bool access_log = true;
  CorsOptions cors{};

  std::vector<std::string> api_keys{};     // empty: no key is asked for
  std::vector<std::string> model_names{};  // at least one; answers carry the first
  std::string model_root{};                // shown in /v1/models
  std::string version{};

  GenerationDefaults generation{};
  nlohmann::ordered_json default_template_kwargs{};  // null, or an object
  bool parse_special_tokens_in_messages = false;
  bool exclude_tools_when_tool_choice_none = false;
  bool reasoning_parser = true;
  bool tool_call_parser = true;
  ReasoningField reasoning_field = ReasoningField::kBoth;
  bool return_tokens_as_token_ids = false;
  bool force_include_usage = false;

  int max_choices = 16384;  // n
  int max_stop_strings = 4;
  int max_completion_prompts = 1024;

  // Labels of vllm:cache_config_info besides what the engine knows.
  std::string cache_dtype = "auto";
  double gpu_memory_utilization = 0;
};

}  // namespace nibble
