#include "apps/runtime.h"

#include <algorithm>
#include <cmath>
#include <fstream>

#include "apps/model_files.h"
#include "apps/terminal.h"
#include "base/error.h"
#include "base/log.h"
#include "model/glm_dummy.h"

namespace nibble {
namespace {

int64_t available_memory_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  int64_t kilobytes = 0;
  for (std::string rest; file >> key >> kilobytes; std::getline(file, rest)) {
    if (key == "MemAvailable:") return kilobytes * 1024;
  }
  return int64_t(1) << 32;
}

KvFormat kv_format_of(const std::string& name) {
  if (name == "auto" || name == "bfloat16" || name == "bf16") return KvFormat::kBF16;
  if (name == "fp8" || name == "fp8_e4m3") return KvFormat::kFp8;
  if (name == "int8") return KvFormat::kInt8;
  if (name == "nvfp4") return KvFormat::kNvfp4;
  throw Error("--kv-cache-dtype " + name +
              ": not supported; use auto, bfloat16 (bf16), fp8 (fp8_e4m3), int8 or nvfp4");
}

void check_dtype(const std::string& dtype) {
  if (dtype == "auto" || dtype == "bfloat16") return;
  throw Error("--dtype " + dtype +
              ": the model is computed from its BF16 or quantized weights; use auto or bfloat16");
}

// --quantization must agree with the checkpoint, as in vLLM; it decides nothing, the tensors do.
void check_quantization(const std::string& method, const GlmConfig& config) {
  if (method.empty() || method == "None" || method == "none") return;
  if (config.quantization.is_null()) {
    throw Error("--quantization " + method +
                ": the checkpoint is not quantized (config.json has no quantization_config); "
                "leave the flag out");
  }
  const std::string stored = config.quantization.value("quant_method", "");
  if (method != stored && method != stored + "_fp4") {
    throw Error("--quantization " + method + ": the checkpoint says \"" + stored + "\"");
  }
}

int64_t pages_for(int64_t tokens, int page_size) {
  return (tokens + page_size - 1) / page_size;
}

struct Limits {
  int max_model_len = 0;
  int64_t num_pages = 0;
};

Limits limits_of(const ModelOptions& o, const GlmConfig& config, KvFormat format) {
  const int64_t page_bytes = kv_page_bytes({.format = format,
                                            .page_size = o.block_size,
                                            .width = config.mla().record_dim(),
                                            .latent = config.mla().latent_dim}) *
                             config.num_layers;
  Limits limits{.max_model_len = config.max_positions};
  const bool automatic =
      o.max_model_len.empty() || o.max_model_len == "auto" || o.max_model_len == "-1";
  if (!automatic) {
    const int wanted = parse_token_count(o.max_model_len);
    if (wanted > config.max_positions) {
      log_warning("--max-model-len " + o.max_model_len + " is over the model's " +
                  std::to_string(config.max_positions) + " positions: clipped");
    }
    limits.max_model_len = std::min(wanted, config.max_positions);
  }
  if (o.num_gpu_blocks_override > 0) {
    limits.num_pages = o.num_gpu_blocks_override;
  } else {
    const int64_t bytes = o.kv_cache_memory_bytes > 0
                              ? o.kv_cache_memory_bytes
                              : std::min(int64_t(4) << 30, available_memory_bytes() * 2 / 5);
    const int64_t useful = pages_for(limits.max_model_len, o.block_size) * o.max_num_seqs;
    limits.num_pages = std::max<int64_t>(1, std::min(bytes / page_bytes, useful));
  }
  const int64_t capacity = std::min<int64_t>(limits.num_pages * o.block_size, config.max_positions);
  if (automatic && capacity < limits.max_model_len) {
    log_warning("the cache holds " + std::to_string(capacity) +
                " tokens: --max-model-len is set to that");
    limits.max_model_len = int(capacity);
  }
  return limits;
}

}  // namespace

int parse_token_count(const std::string& text) {
  size_t used = 0;
  double value = 0;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  const std::string suffix = text.substr(used);
  const double factor = suffix == "k"    ? 1e3
                        : suffix == "K"  ? 1024
                        : suffix == "m"  ? 1e6
                        : suffix == "M"  ? 1048576
                        : suffix.empty() ? 1
                                         : 0;
  const double count = std::floor(value * factor);
  if (used == 0 || factor == 0 || !(count >= 1) || count > 1e9) {
    throw Error("--max-model-len " + text +
                ": must be a number of tokens such as 4096, 16k (16000), 16K (16384), or auto");
  }
  return int(count);
}

Runtime::Runtime(const std::filesystem::path& folder, const ModelOptions& o,
                 std::function<void()> on_step)
    : config(config_of(o, folder)) {
  check_dtype(o.dtype);
  check_quantization(o.quantization, config);
  if (o.max_num_batched_tokens < o.max_num_seqs) {
    throw Error("--max-num-batched-tokens " + std::to_string(o.max_num_batched_tokens) +
                " is less than --max-num-seqs " + std::to_string(o.max_num_seqs) +
                ": a step decodes a token of each sequence");
  }
  const KvFormat kv_format = kv_format_of(o.kv_cache_dtype);
  const Limits limits = limits_of(o, config, kv_format);
  EngineOptions engine_options{.max_model_len = limits.max_model_len,
                               .max_num_seqs = o.max_num_seqs,
                               .max_num_batched_tokens = o.max_num_batched_tokens,
                               .page_size = o.block_size,
                               .num_pages = limits.num_pages,
                               .kv_format = kv_format,
                               .prefix_caching = o.prefix_caching,
                               .max_logprobs = o.max_logprobs,
                               .seed = o.seed,
                               .eos_token_ids = config.eos_token_ids,
                               .on_step = std::move(on_step)};
  backend = create_backend({.device = o.device, .threads = o.threads});
  weights = o.load_format == "dummy" ? dummy_weights(config)
                                     : GlmWeights::load(Checkpoint::open(folder), config);
  upload_weights();
  model = std::make_unique<GlmFlash>(config, weights, *backend, o.max_num_batched_tokens,
                                     Engine::logit_rows(engine_options));
  engine = std::make_unique<Engine>(*model, std::move(engine_options));
}

void Runtime::upload_weights() {
  constexpr double kLongBytes = 5e8;
  const double bytes = double(weights.size_bytes());
  ProgressLine progress;
  int shown = -1;
  weights.upload(*backend, [&](double share) {
    if (bytes < kLongBytes || int(share * 100) == shown) return;
    shown = int(share * 100);
    progress.show("loading " + format_number(bytes / 1e9, 1) + " GB of weights " +
                  ProgressLine::bar(share));
  });
}

void Runtime::start() {
  engine_thread_ = std::thread([this] { engine->run(); });
}

void Runtime::stop(bool drain) {
  engine->stop(drain);
  if (engine_thread_.joinable()) engine_thread_.join();
}

Runtime::~Runtime() {
  if (engine_thread_.joinable()) stop(/*drain=*/false);
}

}  // namespace nibble
