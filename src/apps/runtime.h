// Runtime: a model ready to run. Files, weights on a backend and an engine, without a word of text.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "apps/options.h"
#include "backend/create.h"
#include "checkpoint/checkpoint.h"
#include "engine/engine.h"
#include "model/glm_flash.h"

namespace nibble {

// Whether every logit is to be as exact as the largest.
bool has_exact_logits(const ModelOptions& options);

class Runtime {
 public:
  // Loads everything; shows progress on a terminal when that takes long. `on_step`: see
  // EngineOptions. Throws Error that names the file or flag.
  Runtime(const std::filesystem::path& folder, const ModelOptions& options,
          std::function<void()> on_step = {});
  // Stops the engine's thread, if there is one.
  ~Runtime();

  // Runs the engine on a thread of its own.
  void start();
  // The engine's run() returns: after finishing what is in flight, or at once. Waits for it.
  void stop(bool drain);

  const GlmConfig config;
  const KvFormat kv_format;
  std::unique_ptr<Backend> backend;
  GlmWeights weights;
  std::unique_ptr<GlmFlash> model;
  std::unique_ptr<Engine> engine;

 private:
  void save_weights(const std::filesystem::path& texts, const std::filesystem::path& target);
  void upload_weights();

  std::thread engine_thread_;
};

// What the cache takes of a host with so much free memory, where no flag says it.
int64_t host_cache_bytes(int64_t free_bytes);

// --gpu-memory-limit in bytes; 0 where it is not given. Throws Error that names the flag.
int64_t card_limit_bytes(const ModelOptions& options);
// What may be taken in all of a card of `card_bytes`, by --gpu-memory-limit or -utilization.
int64_t card_budget_bytes(const ModelOptions& options, int64_t card_bytes);

// "16303MiB", "15.5GiB", "16GB" or bytes; throws Error that names `flag`.
int64_t parse_size(const std::string& flag, const std::string& text);

// "4096", "4k" (4,000), "4K" (4,096), "25.6k"; throws Error that names `flag`.
int parse_token_count(const std::string& flag, const std::string& text);

}  // namespace nibble
