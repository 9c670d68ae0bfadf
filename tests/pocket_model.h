// The pocket model, loaded on a backend, and its goldens (made by transformers in FP32).
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "backend/create.h"
#include "checkpoint/checkpoint.h"
#include "engine/engine.h"
#include "model/glm_flash.h"

namespace nibble {

inline const std::string kPocketFolder = NIBBLE_SOURCE_DIR "/models/pocket";
inline const std::string kModeloptFolder = NIBBLE_SOURCE_DIR "/models/pocket-modelopt";

// Whether this machine has the device, by the names of create_backend().
inline bool is_here(const std::string& device) {
  return !device.starts_with("cuda") || has_cuda_device();
}

struct PocketModel {
  explicit PocketModel(const std::string& device, const std::string& folder = kPocketFolder)
      : PocketModel(create_backend({.device = device, .threads = 2}), folder) {}
  explicit PocketModel(std::unique_ptr<Backend> machine, const std::string& folder = kPocketFolder)
      : config(GlmConfig::load(folder)),
        checkpoint(Checkpoint::open(folder)),
        backend(std::move(machine)),
        weights(GlmWeights::load(checkpoint, config)) {
    weights.upload(*backend);
  }

  // An engine over a model of the engine's size. Greedy unless a request says otherwise.
  struct Server {
    std::unique_ptr<GlmFlash> model;
    std::unique_ptr<Engine> engine;
  };
  Server serve(EngineOptions options) {
    options.eos_token_ids = config.eos_token_ids;
    Server server;
    server.model = std::make_unique<GlmFlash>(
        config, weights, *backend, options.max_num_batched_tokens, Engine::logit_rows(options));
    server.engine = std::make_unique<Engine>(*server.model, options);
    return server;
  }

  GlmConfig config;
  Checkpoint checkpoint;
  std::unique_ptr<Backend> backend;
  GlmWeights weights;
};

struct Golden {
  std::string family;
  std::vector<int32_t> input_ids, greedy_ids;
  // Of a quantized model: "w4a16" or "w4a4", and the best minus the second logit of each step.
  std::string arithmetic{};
  std::vector<float> gap{};
};

inline std::vector<Golden> load_goldens(const std::string& folder = kPocketFolder) {
  std::vector<Golden> goldens;
  std::ifstream file(folder + "/goldens.json");
  for (const auto& item : nlohmann::json::parse(file)) {
    goldens.push_back({.family = item["family"],
                       .input_ids = item["input_ids"],
                       .greedy_ids = item["greedy_ids"],
                       .arithmetic = item.value("arithmetic", ""),
                       .gap = item.value("gap", std::vector<float>())});
  }
  return goldens;
}

// All that a finished stream brought; the stop id, if one ended it, as the last token.
inline std::vector<int32_t> drain(Engine& engine, TokenStream& stream) {
  std::vector<int32_t> ids;
  for (;;) {
    const StreamUpdate update = stream.poll();
    for (const Token& token : update.tokens) ids.push_back(token.id);
    if (update.finish) {
      if (update.finish->stop_token) ids.push_back(update.finish->stop_token->id);
      return ids;
    }
    if (update.empty() && !engine.step()) ADD_FAILURE() << "the engine has nothing to do";
  }
}

}  // namespace nibble
