// Engine: requests in, tokens out. One thread (run) owns scheduler, cache and model; submit and
// everything const may be called from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "engine/metrics.h"
#include "engine/request.h"
#include "engine/token_stream.h"
#include "model/glm_flash.h"

namespace nibble {

struct EngineOptions {
  int max_model_len = 4096;           // prompt + output of one request
  int max_num_seqs = 256;             // sequences in one step
  int max_num_batched_tokens = 2048;  // rows of one step
  int page_size = 16;                 // tokens a page of the cache
  int64_t num_pages = 0;              // > 0
  KvFormat kv_format = KvFormat::kBF16;
  bool prefix_caching = true;
  int max_logprobs = 20;
  int max_waiting = 4096;  // requests; more are refused
  uint64_t seed = 0;       // of requests that bring none
  std::vector<int32_t> eos_token_ids{};
  // Called on the engine thread after the tokens of a step were pushed to their streams: one
  // wake-up a step for a consumer that polls many streams. Must not block or throw.
  std::function<void()> on_step{};
};

class Engine {
 public:
  // Rows of logits that a step can have: what the model's max_logit_rows must be.
  static int logit_rows(const EngineOptions& options);

  // Allocates the cache on the model's backend. Throws Error when it does not fit, or when it is
  // too small for one request of max_model_len.
  Engine(GlmFlash& model, EngineOptions options);
  ~Engine();

  // Never blocks. Throws ApiError: 400 for a prompt that is empty, too long or has unknown ids;
  // 503 when the waiting queue is full or the engine is shutting down.
  std::shared_ptr<TokenStream> submit(Request request);

  // Steps until stop() and everything in flight is finished; then returns. Does not throw.
  void run();
  // run() returns: at once, aborting what is in flight, or after draining it.
  void stop(bool drain);

  // One step, for callers without a thread; false when there was nothing to do.
  bool step();

  bool healthy() const;  // false once run() was stopped or failed
  const EngineOptions& options() const;
  int vocab_size() const;  // the model's
  const EngineMetrics& metrics() const;

  // The cache, a layer each, for measurements on the thread that steps; no request may run.
  std::span<const KvLayer> caches() const;

  // Forgets all cached prefixes that no request uses.
  void reset_prefix_cache();

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble
