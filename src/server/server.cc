#include "server/server.h"

#include <chrono>
#include <ctime>
#include <utility>

#include "base/check.h"
#include "server/http.h"
#include "server/http_counts.h"
#include "server/router.h"
#include "server/service.h"

namespace nibble {
namespace {

HttpOptions http_options(const ServerOptions& options) {
  return {.host = options.host,
          .port = options.port,
          .handle_signals = options.handle_signals,
          .drain_timeout = std::chrono::seconds(options.drain_timeout_s)};
}

}  // namespace

class Server::State {
 public:
  State(ServerOptions given, Engine& engine, const Tokenizer& tokenizer,
        const ChatTemplate* chat_template)
      : options(std::move(given)),
        service{.options = options,
                .engine_options = engine.options(),
                .engine_metrics = engine.metrics(),
                .http_counts = counts,
                .tokenizer = tokenizer,
                .vocab_size = engine.vocab_size(),
                .chat_template = chat_template,
                .submit = [&engine](Request request) { return engine.submit(std::move(request)); },
                .healthy = [&engine] { return engine.healthy(); },
                .tags = TagIds(tokenizer),
                .started_s = int64_t(std::time(nullptr))},
        router(service, counts),
        http(http_options(options), router) {
    CHECK(!options.model_names.empty());
  }

  const ServerOptions options;
  HttpCounts counts;
  const Service service;
  Router router;
  HttpServer http;
};

Server::Server(ServerOptions options, Engine& engine, const Tokenizer& tokenizer,
               const ChatTemplate* chat_template)
    : state_(std::make_unique<State>(std::move(options), engine, tokenizer, chat_template)) {}
Server::~Server() = default;

uint16_t Server::port() const {
  return state_->http.port();
}
void Server::run() {
  state_->http.run();
}
void Server::stop() {
  state_->http.stop();
}
void Server::abort() {
  state_->http.abort();
}
void Server::on_step() {
  state_->http.wake();
}

}  // namespace nibble
