// HTTP/1.1 for the server: connections, limits, timeouts and streams, without a word of what is
// served. One I/O thread runs every connection as a coroutine; handlers that take time run on a
// small pool of workers.
//
// Disconnects. A read is pending in every phase, so that a reset is seen at once. The end of the
// client's bytes (a FIN) may mean that it left, or that it closed its sending half only and still
// listens (`nc -N`). Once a stream has begun, it means that the client left. Before that, an
// interim "100 Continue", which clients skip, finds out: a closed socket answers it with a reset.
// HTTP/1.0 has no interim answers: there the end always means that the client left.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace nibble {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method{};
  std::string path{};   // percent-decoded, without the query
  std::string query{};  // as sent
  int version = 11;     // 10 or 11
  bool keep_alive = true;
  HttpHeaders headers{};  // names in lower case
  std::string body{};

  // The first field of that (lower-case) name; empty when there is none.
  std::string_view header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";  // empty: no such field
  std::string body{};
  HttpHeaders headers{};
};

// An answer that is still being made. Born on a worker, then used and destroyed on the I/O thread;
// destroyed early when the client leaves, so the destructor must cancel what is left to do.
class LiveAnswer {
 public:
  explicit LiveAnswer(bool streams) : streams(streams) {}
  virtual ~LiveAnswer() = default;

  // Called after each HttpServer::wake() and every few seconds. Appends to response.body what has
  // become certain; true when the answer is whole. Must not wait. Should it throw, the connection
  // is dropped.
  virtual bool advance() = 0;

  // Streamed: the head goes out at once, response.body is sent and emptied after each advance().
  // Otherwise the response is sent when it is whole.
  const bool streams;
  HttpResponse response;
};

using Answer = std::variant<HttpResponse, std::unique_ptr<LiveAnswer>>;

// What the requests are for. None of these may throw.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;

  // I/O thread, before the body is read: an answer refuses the request.
  virtual std::optional<HttpResponse> admit(const HttpRequest& head) = 0;
  // I/O thread: true when handle() takes microseconds and may run there.
  virtual bool is_quick(const HttpRequest& request) = 0;
  virtual Answer handle(const HttpRequest& request) = 0;
  // I/O thread, once for each answer before its head is sent: fields to add, counting, logging.
  virtual void decorate(const HttpRequest& request, HttpResponse& response) = 0;
};

struct HttpOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;  // 0: any free one
  int num_workers = 2;
  size_t max_connections = 16384;  // more wait in the kernel's queue
  bool handle_signals = false;     // SIGINT and SIGTERM: the first is stop(), the second abort()

  uint32_t max_header_bytes = 64 << 10;
  size_t max_header_fields = 256;
  uint64_t max_body_bytes = 32 << 20;
  size_t max_unsent_bytes = 1 << 20;  // of a stream; a slower reader is cut off

  std::chrono::milliseconds header_timeout{10'000};
  std::chrono::milliseconds keep_alive_timeout{5'000};    // between requests
  std::chrono::milliseconds body_timeout{10'000};         // without a byte; on average >= 1 KiB/s
  std::chrono::milliseconds write_timeout{30'000};        // without a byte
  std::chrono::milliseconds linger_timeout{10'000};       // discarding what a refused client sends
  std::chrono::milliseconds stream_comment_after{5'000};  // of silence
  std::chrono::milliseconds drain_timeout{300'000};       // stop() becomes abort() after that
};

class HttpServer {
 public:
  // Listens; throws Error naming address and flag when it cannot. The handler must outlive it.
  HttpServer(HttpOptions options, HttpHandler& handler);
  ~HttpServer();

  uint16_t port() const;
  // Serves until stop() and the last answer, or abort(). The calling thread is the I/O thread.
  // Changes the process: SIGPIPE is ignored, as many files may be open as the hard limit allows.
  void run();

  // Any thread, also before run(). stop: accepts no more, finishes what is begun. abort: drops it.
  void stop();
  void abort();
  // Any thread: live answers may have news. Calls before the next look are one.
  void wake();

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble
