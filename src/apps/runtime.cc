#include "apps/runtime.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "apps/largest_steps.h"
#include "apps/memory_plan.h"
#include "apps/model_files.h"
#include "apps/terminal.h"
#include "base/error.h"
#include "base/log.h"
#include "compress/model_writer.h"
#include "model/glm_dummy.h"

namespace nibble {
namespace {

// Whether --dtype asks for FP32 throughout.
bool is_exact(const std::string& dtype) {
  if (dtype == "auto" || dtype == "bfloat16" || dtype == "float32") return dtype == "float32";
  throw Error("--dtype " + dtype +
              ": the model is computed from its BF16 or quantized weights; use auto, bfloat16 or "
              "float32");
}

KvFormat kv_format_of(const ModelOptions& o, const GlmConfig& config) {
  const std::string& name = o.kv_cache_dtype;
  if (name == "auto") {
    if (is_exact(o.dtype)) return KvFormat::kF32;
    return config.quantization.wants_fp8_cache() ? KvFormat::kFp8 : KvFormat::kBF16;
  }
  if (name == "bfloat16" || name == "bf16") return KvFormat::kBF16;
  if (name == "fp8" || name == "fp8_e4m3") return KvFormat::kFp8;
  if (name == "int8") return KvFormat::kInt8;
  if (name == "nvfp4") return KvFormat::kNvfp4;
  throw Error("--kv-cache-dtype " + name +
              ": not supported; use auto, bfloat16 (bf16), fp8 (fp8_e4m3), int8 or nvfp4");
}

// --quantization must agree with the checkpoint, as in vLLM; it decides nothing, the tensors do.
void check_quantization(const std::string& method, const GlmConfig& config) {
  if (method.empty() || method == "None" || method == "none") return;
  if (config.quantization.empty()) {
    throw Error("--quantization " + method +
                ": the checkpoint is not quantized (config.json has no quantization_config); "
                "leave the flag out");
  }
  const std::string stored = config.quantization.method();
  if (method != stored && method != stored + "_fp4" && method != stored + "_mixed") {
    throw Error("--quantization " + method + ": the checkpoint says \"" + stored + "\"");
  }
}

int64_t pages_for(int64_t tokens, int page_size) {
  return (tokens + page_size - 1) / page_size;
}

constexpr int64_t kCardReserveBytes = int64_t(32) << 20;  // recorded steps, the driver's own growth

struct Limits {
  int max_model_len = 0;
  int64_t num_pages = 0;
};

int64_t page_bytes_of(const ModelOptions& o, const GlmConfig& config, KvFormat format) {
  const MlaShape mla = config.mla();
  return config.num_layers * kv_page_bytes({.format = format,
                                            .page_size = o.block_size,
                                            .width = mla.record_dim(),
                                            .latent = mla.latent_dim});
}

// What the cache may take: of a card, what its budget has left; of a host, a share of what is free.
int64_t cache_bytes_of(const ModelOptions& o, const Backend& backend) {
  if (o.kv_cache_memory_bytes > 0) return o.kv_cache_memory_bytes;
  const MemoryState memory = backend.memory();
  if (!backend.is_card()) return host_cache_bytes(memory.free_bytes);
  const int64_t budget = card_budget_bytes(o, memory.total_bytes);
  const int64_t used = memory.total_bytes - memory.free_bytes;
  return std::min(budget - used, memory.free_bytes) - kCardReserveBytes;
}

Limits limits_of(const ModelOptions& o, const GlmConfig& config, KvFormat format,
                 const Backend& backend) {
  Limits limits{.max_model_len = config.max_positions};
  const bool automatic =
      o.max_model_len.empty() || o.max_model_len == "auto" || o.max_model_len == "-1";
  if (!automatic) {
    const int wanted = parse_token_count("--max-model-len", o.max_model_len);
    if (wanted > config.max_positions) {
      log_warning("--max-model-len " + o.max_model_len + " is over the model's " +
                  std::to_string(config.max_positions) + " positions: clipped");
    }
    limits.max_model_len = std::min(wanted, config.max_positions);
  }
  if (o.num_gpu_blocks_override > 0) {
    limits.num_pages = o.num_gpu_blocks_override;
  } else {
    const int64_t bytes = cache_bytes_of(o, backend);
    const int64_t page_bytes = page_bytes_of(o, config, format);
    if (bytes < page_bytes && o.kv_cache_memory_bytes > 0) {
      throw Error("--kv-cache-memory-bytes " + std::to_string(bytes) +
                  ": holds no page of the cache; --max-model-len " +
                  std::to_string(limits.max_model_len) + " needs " +
                  std::to_string(pages_for(limits.max_model_len, o.block_size) * page_bytes));
    }
    if (bytes < page_bytes) {
      throw Error("no memory is left for the cache: " + backend.description() +
                  " has too little beside the weights; give it more (--gpu-memory-utilization, "
                  "--gpu-memory-limit), or see what fits with nibble plan");
    }
    const int64_t useful = pages_for(limits.max_model_len, o.block_size) * o.max_num_seqs;
    limits.num_pages = std::min(bytes / page_bytes, useful);
  }
  const int64_t capacity = std::min<int64_t>(limits.num_pages * o.block_size, config.max_positions);
  if (automatic && capacity < limits.max_model_len) {
    log_warning("the cache holds " + std::to_string(capacity) +
                " tokens: --max-model-len is set to that");
    limits.max_model_len = int(capacity);
  }
  return limits;
}

// "writing 12.9 GB of weights [####....]  50 %, 1.2 GB/s"
class ByteProgress {
 public:
  ByteProgress(std::string doing, double bytes) : doing_(std::move(doing)), bytes_(bytes) {}

  // Of a few bytes it says nothing.
  void show(double share) {
    constexpr double kLongBytes = 5e8;
    if (bytes_ < kLongBytes || int(share * 100) == shown_) return;
    shown_ = int(share * 100);
    line_.show(doing_ + " " + format_number(bytes_ / 1e9, 1) + " GB of weights " +
               ProgressLine::bar(share) + ", " +
               format_number(share * bytes_ / seconds() / 1e9, 1) + " GB/s");
  }
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  const std::string doing_;
  const double bytes_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  ProgressLine line_;
  int shown_ = -1;
};

}  // namespace

int64_t host_cache_bytes(int64_t free_bytes) {
  return std::min(int64_t(4) << 30, free_bytes * 2 / 5);
}

int64_t card_limit_bytes(const ModelOptions& o) {
  return o.gpu_memory_limit.empty() ? 0 : parse_size("--gpu-memory-limit", o.gpu_memory_limit);
}

int64_t card_budget_bytes(const ModelOptions& o, int64_t card_bytes) {
  const int64_t limit = card_limit_bytes(o);
  return limit > 0 ? std::min(limit, card_bytes)
                   : int64_t(double(card_bytes) * o.gpu_memory_utilization);
}

int64_t parse_size(const std::string& flag, const std::string& text) {
  size_t used = 0;
  double value = 0;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  const std::string unit = text.substr(used);
  const double factor = unit == "GiB"   ? double(int64_t(1) << 30)
                        : unit == "MiB" ? double(int64_t(1) << 20)
                        : unit == "GB"  ? 1e9
                        : unit == "MB"  ? 1e6
                        : unit.empty()  ? 1
                                        : 0;
  const double bytes = std::floor(value * factor);
  if (used == 0 || factor == 0 || !(bytes >= 1) || bytes > 1e15) {
    throw Error(flag + " " + text + ": must be a size such as 16303MiB, 15.5GiB or 16GB");
  }
  return int64_t(bytes);
}

bool has_exact_logits(const ModelOptions& options) {
  return options.full_logits || options.lm_head_dtype == "bfloat16" || is_exact(options.dtype);
}

int parse_token_count(const std::string& flag, const std::string& text) {
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
    throw Error(flag + " " + text +
                ": must be a number of tokens such as 4096, 16k (16000), 16K (16384)" +
                (flag == "--max-model-len" ? ", or auto" : ""));
  }
  return int(count);
}

Runtime::Runtime(const std::filesystem::path& folder, const ModelOptions& o,
                 std::function<void()> on_step)
    : config(config_of(o, folder)), kv_format(kv_format_of(o, config)) {
  check_quantization(o.quantization, config);
  auto start = std::chrono::steady_clock::now();
  const auto report = [&](const char* what) {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - std::exchange(start, now)).count();
    log_debug(what + format_number(seconds, 3) + " s");
  };
  backend = create_backend({.device = o.device,
                            .threads = o.threads,
                            .exact = is_exact(o.dtype),
                            .card_memory_bytes = card_limit_bytes(o)});
  report("start of the device: ");
  const int64_t budget =
      backend->is_card() ? card_budget_bytes(o, backend->memory().total_bytes) : 0;
  const int batched_tokens = batched_tokens_of(o, budget);
  if (batched_tokens < o.max_num_seqs) {
    throw Error("--max-num-batched-tokens " + std::to_string(batched_tokens) +
                " is less than --max-num-seqs " + std::to_string(o.max_num_seqs) +
                ": a step decodes a token of each sequence");
  }
  EngineOptions engine_options{.max_num_seqs = o.max_num_seqs,
                               .max_num_batched_tokens = batched_tokens,
                               .page_size = o.block_size,
                               .kv_format = kv_format,
                               .prefix_caching = o.prefix_caching,
                               .max_logprobs = o.max_logprobs,
                               .seed = o.seed,
                               .eos_token_ids = config.eos_token_ids,
                               .on_step = std::move(on_step)};
  weights = o.load_format == "dummy" ? dummy_weights(config)
                                     : GlmWeights::load(Checkpoint::open(folder), config);
  report("opening of the weights: ");
  if (!o.save.empty()) save_weights(folder, o.save);
  if (has_exact_logits(o)) weights.lm_head.use = Use::kLinear;
  upload_weights();
  report("loading of the weights: ");
  if (backend->is_card()) run_largest_steps(config, weights, *backend, engine_options);
  report("largest steps: ");
  model = std::make_unique<GlmFlash>(config, weights, *backend, batched_tokens,
                                     Engine::logit_rows(engine_options));
  const Limits limits = limits_of(o, config, kv_format, *backend);
  engine_options.max_model_len = limits.max_model_len;
  engine_options.num_pages = limits.num_pages;
  engine = std::make_unique<Engine>(*model, std::move(engine_options));
  report("cache: ");
}

void Runtime::save_weights(const std::filesystem::path& texts,
                           const std::filesystem::path& target) {
  const double bytes = double(weights.size_bytes());
  ByteProgress progress("writing", bytes);
  write_model(config, weights, texts, target, [&](WrittenShare written) {
    progress.show(double(written.done_bytes) / double(written.total_bytes));
  });
  log_info(target.string() + ": " + format_number(bytes / 1e9, 3) + " GB in " +
           format_number(progress.seconds(), 1) + " s");
}

void Runtime::upload_weights() {
  ByteProgress progress("loading", double(weights.size_bytes()));
  weights.upload(*backend, [&](double share) { progress.show(share); });
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
