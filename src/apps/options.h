// What the command line can say, as plain structs: one for what all subcommands share, and one
// each.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "compress/options.h"

namespace nibble {

// Which model, on what, with which limits.
struct ModelOptions {
  std::string model{};  // a folder or a built-in name; empty: the pocket model
  std::string device = "auto";
  int threads = 0;  // 0: physical cores
  std::string load_format = "auto";
  int num_hidden_layers = 0;  // 0: the config's; fewer only for dummy weights
  std::string save{};         // a new folder for the dummy weights; empty: nowhere
  std::string dtype = "auto";
  std::string quantization{};
  std::string kv_cache_dtype = "auto";
  std::string lm_head_dtype = "auto";
  std::string max_model_len{};  // tokens, 1k = 1000, 1K = 1024, "auto"; empty: the model's
  int max_num_seqs = 256;
  int max_num_batched_tokens = 0;  // 0: batched_tokens_of()
  int block_size = 16;
  int64_t num_gpu_blocks_override = 0;   // pages of the cache; 0: by memory
  int64_t kv_cache_memory_bytes = 0;     // 0: what is left of the card's, a share of the host's
  double gpu_memory_utilization = 0.92;  // of the card's memory, all that is taken
  std::string gpu_memory_limit{};        // such as 16303MiB: as if the card had no more
  bool prefix_caching = true;
  int max_logprobs = 20;
  uint64_t seed = 0;
  bool full_logits = false;  // every logit as exact as the largest
};

struct ServeOptions {
  ModelOptions model{};
  std::vector<std::string> served_model_names{};
  std::string host = "127.0.0.1";
  int port = 8000;
  std::vector<std::string> api_keys{};
  std::vector<std::string> allowed_origins{};
  std::string generation_config = "auto";
  std::string override_generation_config{};
  std::string default_chat_template_kwargs{};
  std::string chat_template{};  // a file, or the template itself
  std::string reasoning_parser{};
  std::string tool_call_parser{};
  std::string reasoning_field = "both";
  bool parse_special_tokens_in_messages = false;
  bool return_tokens_as_token_ids = false;
  std::string log_level = "info";
  bool no_access_log = false;
};

struct ChatOptions {
  ModelOptions model{};
  std::string system{};
  std::optional<float> temperature{};  // unset: generation_config.json's
  std::optional<float> top_p{};
  int max_tokens = 0;  // 0: as many as fit
  bool no_thinking = false;
  bool hide_thinking = false;
};

struct EvalOptions {
  ModelOptions model{};
  std::string perplexity{};  // a text file
  std::string chat{};        // a .jsonl file
  std::string tasks{};       // a .jsonl file
  std::string base{};        // a model whose predictions are the truth
  std::string compare{};     // a model to show beside the first
  int problems = 0;          // of each family; 0: all
  std::vector<std::string> families{};
  std::string json{};  // where to write the result
};

// Conversations that show a model its inputs, and the machine that runs them.
struct CalibrationFlags {
  std::string device = "cpu";
  int threads = 0;     // 0: physical cores
  std::string file{};  // .jsonl; empty: the pocket model's
  int samples = 512;
  int max_length = 2048;  // tokens of a sample; the rest is cut off
  bool strict = false;    // refuse lines that cannot be read instead of leaving them out
};

struct QuantizeFlags {
  QuantizeOptions quantize{};
  CalibrationFlags calibration{};
  std::string budget{};  // "+1%"
  bool dry_run = false;  // only say what it would take
};

struct PruneFlags {
  PruneOptions prune{};
  CalibrationFlags calibration{};
  bool dry_run = false;
};

struct PlanOptions {
  ModelOptions model{};
  std::string gpu_memory{};  // such as 16303MiB; empty: of the card that is here
  std::string memory{};      // without a card: that may be taken; empty: what is free here
};

struct BenchOptions {
  ModelOptions model{};
  std::vector<std::string> contexts = {"0", "1K", "8K", "32K", "128K"};  // tokens before decoding
  std::vector<int> batches = {1, 8, 64};                                 // sequences that decode
  std::vector<std::string> prompts = {"512", "2K", "8K", "32K"};         // tokens of prefill
  bool skip_engine = false;
  int repetitions = 3;
  std::string csv{};
};

}  // namespace nibble
