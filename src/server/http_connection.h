// Connection: one client, from its first byte to its last. Everything happens on the I/O thread,
// where nothing else is said. One coroutine decides; reads and writes complete on their own and
// wake it.
#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "server/http.h"
#include "server/http_parser.h"

namespace nibble {

class Connection;

// What connections share with their server.
struct ConnectionContext {
  const HttpOptions& options;
  HttpHandler& handler;
  // Has a worker call handle() and deliver() the answer on the I/O thread.
  std::function<void(std::shared_ptr<Connection>)> dispatch{};
  bool draining = false;
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(boost::asio::ip::tcp::socket socket, ConnectionContext& context);

  // Ends when the connection is closed.
  boost::asio::awaitable<void> run();

  // Live answers may have news.
  void poll();
  // The server drains: an idle connection closes now, a busy one after its answer.
  void finish();
  void abort();

  // The request in hand: constant, and safe to read on a worker, until deliver().
  const HttpRequest& request() const { return request_; }
  void deliver(Answer answer);
  // Any thread: nobody waits for the answer any more.
  bool gone() const { return gone_.load(std::memory_order_relaxed); }

 private:
  using Clock = std::chrono::steady_clock;
  using TimePoint = Clock::time_point;
  enum class Received { kRequest, kRefused, kClosed };

  boost::asio::awaitable<Received> receive();
  boost::asio::awaitable<void> answer();
  boost::asio::awaitable<void> send_live();
  boost::asio::awaitable<void> linger();
  // Waits until everything queued is written, or the client is gone.
  boost::asio::awaitable<void> flush();
  // Waits for a wake() (true) or until the deadline (false).
  boost::asio::awaitable<bool> event(TimePoint deadline);
  void wake();
  void leave();  // the client is gone: nothing more can be sent

  bool admit_head(RequestParser& parser);
  void refuse(RequestParser& parser, HttpResponse response);
  TimePoint receive_deadline(const RequestParser& parser) const;
  size_t max_input_bytes() const { return context_.options.max_header_bytes + (64 << 10); }

  void start_read();
  void on_readable();
  void on_end_of_input();
  void watch_for_reset();
  void start_write();
  void drop_if_stalled();
  bool written() const { return sent_ == sending_.size() && pending_.empty(); }

  void queue_head(HttpResponse& response, bool streamed);
  void queue_response(HttpResponse response);
  void queue_chunk(std::string_view bytes);

  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer timer_;
  ConnectionContext& context_;
  bool woken_ = false;
  bool closing_ = false;    // no further request
  bool lingers_ = false;    // something was answered before closing
  bool answering_ = false;  // a whole request is in hand
  std::atomic<bool> gone_{false};

  std::string input_;  // read and not yet parsed
  bool reading_ = false;
  bool input_ended_ = false;
  bool probed_ = false;
  bool begun_ = false;  // the first byte of a request has come
  bool first_request_ = true;
  TimePoint phase_started_{};  // of waiting, of the head, of the body
  TimePoint last_read_{};
  uint64_t body_bytes_ = 0;

  std::string sending_;  // being written, from sent_ on
  size_t sent_ = 0;
  std::string pending_;  // to be written after it
  bool writing_ = false;
  TimePoint last_write_{};

  HttpRequest request_;
  std::optional<Answer> answer_;
  std::unique_ptr<LiveAnswer> live_;
  bool live_whole_ = false;
};

}  // namespace nibble
