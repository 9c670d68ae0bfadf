#include "engine/token_stream.h"

namespace nibble {

StreamUpdate TokenStream::poll() {
  std::lock_guard lock(mutex_);
  return std::exchange(pending_, {});
}

StreamUpdate TokenStream::wait(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  arrived_.wait_for(lock, timeout, [this] { return !pending_.empty(); });
  return std::exchange(pending_, {});
}

void TokenStream::push(Token token) {
  {
    std::lock_guard lock(mutex_);
    pending_.tokens.push_back(std::move(token));
  }
  arrived_.notify_one();
}

void TokenStream::push_prompt_logprobs(std::vector<TokenLogprobs> logprobs) {
  std::lock_guard lock(mutex_);
  pending_.prompt_logprobs = std::move(logprobs);
}

void TokenStream::finish(Finish finish) {
  {
    std::lock_guard lock(mutex_);
    pending_.finish = std::move(finish);
  }
  arrived_.notify_one();
}

}  // namespace nibble
