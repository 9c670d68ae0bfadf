// TokenStream: the tokens of one request on their way from the engine thread to one consumer.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/request.h"

namespace nibble {

struct TokenLogprobs {
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top{};  // falling
};

struct Token {
  int32_t id = 0;
  std::optional<TokenLogprobs> logprobs{};
};

struct Finish {
  FinishReason reason = FinishReason::kStop;
  // The stop id that ended it. It is not among the tokens, but was generated: usage,
  // log-probabilities and metrics have it.
  std::optional<Token> stop_token{};
  std::string error{};  // kError: what happened
};

// Everything that arrived since the last look.
struct StreamUpdate {
  std::vector<Token> tokens{};
  std::vector<TokenLogprobs> prompt_logprobs{};  // whole, with the first update that has tokens
  std::optional<Finish> finish{};                // set once, with or after the last tokens
  bool empty() const { return tokens.empty() && prompt_logprobs.empty() && !finish; }
};

// The engine pushes, one consumer polls or waits; any thread may cancel. Holds at most the tokens
// that the request may generate, so a slow consumer costs only its own memory.
class TokenStream {
 public:
  // Takes what has arrived, without waiting.
  StreamUpdate poll();
  // Waits until something arrives or `timeout` is over, then takes it.
  StreamUpdate wait(std::chrono::milliseconds timeout = std::chrono::hours(24));

  // The engine drops the request at its next step, frees its pages and counts it as ended for
  // `reason`: kStop where the consumer has found the end of the answer.
  void cancel(FinishReason reason = FinishReason::kAbort) {
    cancel_reason_.store(reason, std::memory_order_relaxed);
    cancelled_.store(true, std::memory_order_release);
  }
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  // Once cancelled.
  FinishReason cancel_reason() const { return cancel_reason_.load(std::memory_order_relaxed); }

  // Prompt tokens that came from the prefix cache; known with the first token.
  int cached_tokens() const { return cached_tokens_.load(std::memory_order_acquire); }

  // Engine side.
  void push(Token token);
  void push_prompt_logprobs(std::vector<TokenLogprobs> logprobs);
  void finish(Finish finish);
  void set_cached_tokens(int count) { cached_tokens_.store(count, std::memory_order_release); }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  StreamUpdate pending_;
  std::atomic<bool> cancelled_{false};
  std::atomic<FinishReason> cancel_reason_{FinishReason::kAbort};
  std::atomic<int> cached_tokens_{0};
};

}  // namespace nibble
