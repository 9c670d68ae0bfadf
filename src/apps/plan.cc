// nibble plan: what fits on a card, or without one in memory, before loading. Prints where the
// memory goes, draws it as a bar and gives the longest context of each format of the cache.
#include <algorithm>
#include <cstdio>

#include "apps/memory_plan.h"
#include "apps/model_files.h"
#include "apps/runtime.h"
#include "apps/subcommands.h"
#include "apps/terminal.h"
#include "base/error.h"
#include "base/memory_state.h"
#include "model/glm_dummy.h"

namespace nibble {
namespace {

constexpr int kBarWidth = 60;
constexpr double kMiB = double(1 << 20);

struct Piece {
  std::string name;
  int64_t bytes = 0;
  char mark = ' ';
};

std::string mib(int64_t bytes) {
  return format_number(double(bytes) / kMiB, 0) + " MiB";
}

// A character for each 1/60 of the budget, or of what is needed where that is more; what is there
// at all gets one.
std::string bar_of(const std::vector<Piece>& pieces, int64_t budget) {
  int64_t needed = 0;
  for (const Piece& piece : pieces) needed += std::max<int64_t>(0, piece.bytes);
  const int64_t whole = std::max(budget, needed);
  std::string bar;
  for (const Piece& piece : pieces) {
    if (piece.bytes <= 0) continue;
    const double share = double(piece.bytes) / double(whole);
    bar.append(size_t(std::max(1, int(share * kBarWidth + 0.5))), piece.mark);
  }
  bar.resize(std::max<size_t>(bar.size(), kBarWidth), ' ');
  return "[" + bar + "]";
}

struct CacheFormat {
  KvFormat format;
  const char* name;
};
constexpr CacheFormat kCacheFormats[] = {{KvFormat::kBF16, "bfloat16"},
                                         {KvFormat::kFp8, "fp8"},
                                         {KvFormat::kInt8, "int8"},
                                         {KvFormat::kNvfp4, "nvfp4"}};

int64_t tokens_that_fit(const GlmConfig& config, const ModelOptions& options, KvFormat format,
                        int64_t bytes) {
  const MlaShape mla = config.mla();
  const int64_t page_bytes = kv_page_bytes({.format = format,
                                            .page_size = options.block_size,
                                            .width = mla.record_dim(),
                                            .latent = mla.latent_dim}) *
                             config.num_layers;
  return std::max<int64_t>(0, bytes) / page_bytes * options.block_size;
}

void print_contexts(const GlmConfig& config, const ModelOptions& options, int64_t cache_bytes) {
  std::vector<std::vector<std::string>> rows = {{"--kv-cache-dtype", "tokens in all", "longest"}};
  const char* advised = nullptr;
  for (const CacheFormat& cache : kCacheFormats) {
    const int64_t tokens = tokens_that_fit(config, options, cache.format, cache_bytes);
    const int64_t longest = std::min<int64_t>(tokens, config.max_positions);
    // FP8 holds as much as INT8 and loses ten times more.
    const bool fits = longest == config.max_positions && cache.format != KvFormat::kFp8;
    if (advised == nullptr && fits) advised = cache.name;
    rows.push_back({cache.name, std::to_string(tokens), std::to_string(longest)});
  }
  std::printf("%s\n", table(rows).c_str());
  if (advised != nullptr) {
    std::printf("The model's whole context of %d tokens fits with --kv-cache-dtype %s.\n",
                config.max_positions, advised);
  } else {
    std::printf("For the longest context with little loss: --kv-cache-dtype int8.\n");
  }
}

// The card's memory: as given, else that of the card that is here.
int64_t card_bytes_of(const PlanOptions& options) {
  if (!options.gpu_memory.empty()) return parse_size("--gpu-memory", options.gpu_memory);
  if (!has_cuda_device()) {
    throw Error(
        "there is no CUDA device here: say how much memory yours has, such as "
        "--gpu-memory 16303MiB");
  }
  return create_backend({.device = "cuda"})->memory().total_bytes;
}

// Whether the plan is for a host: --device cpu, or auto where neither a card nor a flag says else.
bool is_for_host(const PlanOptions& options) {
  const std::string& device = options.model.device;
  const bool host = device == "cpu" || device == "reference" ||
                    (device == "auto" && options.gpu_memory.empty() &&
                     (!options.memory.empty() || !has_cuda_device()));
  if (host && !options.gpu_memory.empty()) {
    throw Error("--gpu-memory is that of a card, but --device is " + device +
                ": use --memory, or leave --device out");
  }
  if (!host && !options.memory.empty()) {
    throw Error("--memory is that of a machine without a card: use --gpu-memory, or --device cpu");
  }
  return host;
}

// Prints the plan; whether the model fits.
bool print_plan(const MemoryPlan& plan, const std::string& title,
                const std::vector<Piece>& pieces) {
  std::printf("%s\n%s\n", title.c_str(), bar_of(pieces, plan.budget_bytes).c_str());
  std::vector<std::vector<std::string>> rows;
  for (const Piece& piece : pieces) {
    rows.push_back({std::string(1, piece.mark) + " " + piece.name, mib(piece.bytes)});
  }
  if (!plan.on_host && plan.host_bytes > 0) {
    rows.push_back({"  weights on the host", mib(plan.host_bytes)});
  }
  std::printf("%s\n", table(rows).c_str());
  const int64_t cache = plan.cache_bytes();
  if (cache > 0) return true;
  std::printf(
      "It does not fit: %s are missing. See --max-num-batched-tokens, --max-num-seqs, "
      "or quantize the model further.\n",
      mib(-cache).c_str());
  return false;
}

int plan_for_host(const PlanOptions& options, const GlmConfig& config, const GlmWeights& weights) {
  const ModelOptions& o = options.model;
  const MemoryState here = host_memory();
  const int64_t budget =
      options.memory.empty() ? here.free_bytes : parse_size("--memory", options.memory);
  const MemoryPlan plan = plan_host(config, weights, o, budget);
  const int64_t cache = plan.cache_bytes();
  const std::string title =
      model_name(o.model) + " without a card, in " + mib(budget) +
      (options.memory.empty() ? " that are free of " + mib(here.total_bytes) : "");
  const bool fits = print_plan(plan, title,
                               {{"weights", plan.weights_bytes, 'W'},
                                {"rows read as stored", plan.host_bytes, 'R'},
                                {"activations", plan.activation_bytes, 'A'},
                                {"kernels' workspace", plan.workspace_bytes, 'A'},
                                {"program", plan.context_bytes, 'P'},
                                {"cache", cache, '.'}});
  if (!fits) return 1;
  print_contexts(config, o, cache);
  const int64_t taken = host_cache_bytes(budget - plan.weights_bytes - plan.context_bytes);
  if (o.kv_cache_memory_bytes == 0 && taken < cache) {
    std::printf("The server takes %s for the cache; all of it with --kv-cache-memory-bytes %ld.\n",
                mib(taken).c_str(), long(cache));
  }
  return 0;
}

}  // namespace

int plan(const PlanOptions& options) {
  const ModelOptions& o = options.model;
  const bool for_host = is_for_host(options);
  const auto folder = find_model(o.model);
  const GlmConfig config = config_of(o, folder);
  const GlmWeights weights = o.load_format == "dummy"
                                 ? dummy_weights(config)
                                 : GlmWeights::load(Checkpoint::open(folder), config);
  if (for_host) return plan_for_host(options, config, weights);
  const int64_t card = card_bytes_of(options);
  const int64_t budget = card_budget_bytes(o, card);
  const MemoryPlan plan = plan_card(config, weights, o, budget);
  const int64_t cache = plan.cache_bytes();
  const std::string title = model_name(o.model) + " on a card of " + mib(card) + ", of which " +
                            mib(budget) + " may be taken";
  const bool fits = print_plan(plan, title,
                               {{"weights", plan.weights_bytes, 'W'},
                                {"activations", plan.activation_bytes, 'A'},
                                {"kernels' workspace", plan.workspace_bytes, 'A'},
                                {"driver", plan.context_bytes, 'D'},
                                {"cache", cache, '.'}});
  if (!fits) return 1;
  print_contexts(config, o, cache);
  return 0;
}

}  // namespace nibble
