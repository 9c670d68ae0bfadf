#include "server/http.h"

#include <sys/resource.h>

#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <csignal>
#include <exception>
#include <string>
#include <unordered_set>

#include "base/error.h"
#include "base/log.h"
#include "server/http_connection.h"

namespace nibble {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using namespace std::chrono_literals;

// Every connection is a file; the usual soft limit of 1,024 is for programs that use select().
void raise_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

class HttpServer::State {
 public:
  State(HttpOptions options, HttpHandler& handler);
  ~State() { pool_.join(); }

  uint16_t port() const { return port_; }
  void run();
  void stop() {
    asio::post(io_, [this] { drain(); });
  }
  void abort() {
    asio::post(io_, [this] { drop_all(); });
  }
  void wake();

 private:
  void listen();
  asio::awaitable<void> accept();
  asio::awaitable<void> serve(std::shared_ptr<Connection> connection);
  asio::awaitable<void> obey_signals();
  void dispatch(std::shared_ptr<Connection> connection);
  void drain();
  void drop_all();
  void quit_if_done();

  const HttpOptions options_;
  HttpHandler& handler_;
  asio::io_context io_{1};
  asio::thread_pool pool_;
  tcp::acceptor acceptor_{io_};
  asio::steady_timer room_{io_};  // expires when accepting may go on
  asio::steady_timer drain_timer_{io_};
  asio::signal_set signals_{io_};
  ConnectionContext context_;
  uint16_t port_ = 0;
  std::unordered_set<Connection*> connections_;
  std::atomic<bool> woken_{false};
};

HttpServer::State::State(HttpOptions options, HttpHandler& handler)
    : options_(std::move(options)),
      handler_(handler),
      pool_(size_t(options_.num_workers)),
      context_{.options = options_, .handler = handler} {
  context_.dispatch = [this](std::shared_ptr<Connection> connection) {
    dispatch(std::move(connection));
  };
  try {
    listen();
  } catch (const boost::system::system_error& error) {
    throw Error("cannot listen on " + options_.host + ":" + std::to_string(options_.port) + ": " +
                error.code().message() + " (choose another address with --host and --port)");
  }
}

void HttpServer::State::listen() {
  tcp::resolver resolver(io_);
  const auto found = resolver.resolve(options_.host, std::to_string(options_.port),
                                      tcp::resolver::passive | tcp::resolver::numeric_service);
  const tcp::endpoint endpoint = *found.begin();
  acceptor_.open(endpoint.protocol());
  acceptor_.set_option(tcp::acceptor::reuse_address(true));
  acceptor_.bind(endpoint);
  acceptor_.listen(4096);
  port_ = acceptor_.local_endpoint().port();
}

void HttpServer::State::run() {
  std::signal(SIGPIPE, SIG_IGN);
  raise_file_limit();
  asio::co_spawn(io_, accept(), asio::detached);
  if (options_.handle_signals) asio::co_spawn(io_, obey_signals(), asio::detached);
  io_.run();
}

asio::awaitable<void> HttpServer::State::accept() {
  while (acceptor_.is_open()) {
    error_code error;
    if (connections_.size() >= options_.max_connections) {
      room_.expires_after(100ms);
      co_await room_.async_wait(asio::redirect_error(asio::use_awaitable, error));
      continue;
    }
    tcp::socket socket(io_);
    co_await acceptor_.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
    if (error == asio::error::operation_aborted) break;
    if (error) {  // out of file descriptors, or the client left again
      log_warning("cannot accept a connection: " + error.message());
      room_.expires_after(100ms);
      co_await room_.async_wait(asio::redirect_error(asio::use_awaitable, error));
      continue;
    }
    auto connection = std::make_shared<Connection>(std::move(socket), context_);
    connections_.insert(connection.get());
    asio::co_spawn(io_, serve(std::move(connection)), asio::detached);
  }
}

asio::awaitable<void> HttpServer::State::serve(std::shared_ptr<Connection> connection) {
  try {
    co_await connection->run();
  } catch (const std::exception& error) {
    log_error(std::string("a connection failed: ") + error.what());
    connection->abort();
  }
  connections_.erase(connection.get());
  quit_if_done();
}

void HttpServer::State::dispatch(std::shared_ptr<Connection> connection) {
  asio::post(pool_, [this, connection = std::move(connection)]() mutable {
    if (connection->gone()) return;
    Answer answer = handler_.handle(connection->request());
    asio::post(io_, [connection = std::move(connection), answer = std::move(answer)]() mutable {
      connection->deliver(std::move(answer));
    });
  });
}

void HttpServer::State::wake() {
  if (woken_.exchange(true)) return;
  asio::post(io_, [this] {
    woken_.store(false);
    for (Connection* connection : connections_) connection->poll();
  });
}

asio::awaitable<void> HttpServer::State::obey_signals() {
  signals_.add(SIGINT);
  signals_.add(SIGTERM);
  for (bool first = true; !(context_.draining && connections_.empty()); first = false) {
    error_code error;
    co_await signals_.async_wait(asio::redirect_error(asio::use_awaitable, error));
    if (error) co_return;
    if (!first) co_return drop_all();
    log_info("finishing what is begun; a second signal stops at once");
    drain();
  }
}

void HttpServer::State::drain() {
  if (context_.draining) return;
  context_.draining = true;
  error_code ignored;
  acceptor_.close(ignored);
  room_.cancel();
  for (Connection* connection : connections_) connection->finish();
  drain_timer_.expires_after(options_.drain_timeout);
  drain_timer_.async_wait([this](error_code error) {
    if (!error) drop_all();
  });
  quit_if_done();
}

void HttpServer::State::drop_all() {
  drain();
  for (Connection* connection : connections_) connection->abort();
}

// With nothing left to wait for, run() returns.
void HttpServer::State::quit_if_done() {
  if (!context_.draining || !connections_.empty()) return;
  drain_timer_.cancel();
  signals_.cancel();
}

HttpServer::HttpServer(HttpOptions options, HttpHandler& handler)
    : state_(std::make_unique<State>(std::move(options), handler)) {}
HttpServer::~HttpServer() = default;

uint16_t HttpServer::port() const {
  return state_->port();
}
void HttpServer::run() {
  state_->run();
}
void HttpServer::stop() {
  state_->stop();
}
void HttpServer::abort() {
  state_->abort();
}
void HttpServer::wake() {
  state_->wake();
}

}  // namespace nibble
