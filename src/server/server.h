// Server: an OpenAI-compatible HTTP server over an Engine.
#pragma once

#include <cstdint>
#include <memory>

#include "engine/engine.h"
#include "server/options.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace nibble {

class Server {
 public:
  // Listens at once; throws Error when address and port cannot be had. `chat_template` may be
  // nullptr. All must outlive the server.
  Server(ServerOptions options, Engine& engine, const Tokenizer& tokenizer,
         const ChatTemplate* chat_template);
  ~Server();

  uint16_t port() const;

  // Serves until stop() and the last answer. SIGINT and SIGTERM (options.handle_signals) stop it,
  // a second one at once. The engine runs on another thread, until after this has returned.
  void run();

  // Any thread. stop: accepts no more, finishes what is begun. abort: drops it.
  void stop();
  void abort();
  // For EngineOptions::on_step, as long as the server lives.
  void on_step();

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble
