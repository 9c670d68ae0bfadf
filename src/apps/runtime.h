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
  std::unique_ptr<Backend> backend;
  GlmWeights weights;
  std::unique_ptr<GlmFlash> model;
  std::unique_ptr<Engine> engine;

 private:
  void upload_weights();

  std::thread engine_thread_;
};

// "4096", "4k" (4,000), "4K" (4,096), "25.6k"; throws Error that names --max-model-len.
int parse_token_count(const std::string& text);

}  // namespace nibble
