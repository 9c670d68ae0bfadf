#include "server/http_connection.h"

#include <algorithm>
#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http/status.hpp>
#include <charconv>
#include <ctime>
#include <exception>
#include <utility>

#include "base/log.h"
#include "server/errors.h"
#include "server/sse.h"

namespace nibble {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using namespace std::chrono_literals;

constexpr size_t kReadBytes = 64 << 10;
constexpr uint64_t kMaxDiscardedBytes = 256 << 20;
constexpr auto kTick = 1000ms;  // between looks at a live answer without news
constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";

std::string http_date() {
  const std::time_t now = std::time(nullptr);
  std::tm parts;
  gmtime_r(&now, &parts);
  char text[40];
  return {text, std::strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &parts)};
}

}  // namespace

Connection::Connection(tcp::socket socket, ConnectionContext& context)
    : socket_(std::move(socket)), timer_(socket_.get_executor()), context_(context) {
  error_code ignored;
  socket_.non_blocking(true, ignored);
  socket_.set_option(tcp::no_delay(true), ignored);
}

asio::awaitable<void> Connection::run() {
  const std::shared_ptr<Connection> self = shared_from_this();
  while (!closing_ && !gone()) {
    const Received received = co_await receive();
    if (received == Received::kClosed) closing_ = true;
    if (received == Received::kRequest) co_await answer();
    if (context_.draining && !closing_) closing_ = lingers_ = true;
  }
  if (lingers_) co_await linger();
  leave();
  error_code ignored;
  socket_.close(ignored);
}

asio::awaitable<bool> Connection::event(TimePoint deadline) {
  if (!woken_) {
    timer_.expires_at(deadline);
    error_code ignored;
    co_await timer_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
  co_return std::exchange(woken_, false);
}

void Connection::wake() {
  woken_ = true;
  timer_.cancel();
}

void Connection::leave() {
  gone_.store(true, std::memory_order_relaxed);
  wake();
}

void Connection::finish() {
  if (answering_ || begun_) return;  // its answer will say that it is the last
  closing_ = true;
  wake();
}

void Connection::abort() {
  leave();
  error_code ignored;
  socket_.cancel(ignored);
}

// Receiving.

asio::awaitable<Connection::Received> Connection::receive() {
  RequestParser parser(context_.options);
  bool admitted = false;
  begun_ = false;
  body_bytes_ = 0;
  phase_started_ = last_read_ = Clock::now();
  while (!closing_ && !gone()) {
    if (!input_.empty() && !begun_) {
      begun_ = true;
      phase_started_ = last_read_ = Clock::now();
    }
    const size_t taken = parser.put(input_);
    input_.erase(0, taken);
    if (parser.state() == RequestParser::State::kFailed) {
      refuse(parser, error_response(parser.status(), parser.message()));
      co_return Received::kRefused;
    }
    if (!admitted && parser.state() != RequestParser::State::kHead) {
      if (!admit_head(parser)) co_return Received::kRefused;
      admitted = true;
    } else {
      body_bytes_ += taken;
    }
    if (parser.state() == RequestParser::State::kDone) {
      request_ = std::move(parser.request());
      first_request_ = false;
      co_return Received::kRequest;
    }
    if (taken > 0 && !input_.empty()) continue;
    if (input_.size() >= max_input_bytes()) {
      refuse(parser, error_response(400, "A line of the request is too long."));
      co_return Received::kRefused;
    }
    if (input_ended_) {
      if (!begun_) co_return Received::kClosed;
      refuse(parser, error_response(400, "The request ends before it is complete."));
      co_return Received::kRefused;
    }
    start_read();
    const bool woke = co_await event(receive_deadline(parser));
    if (woke) continue;
    if (!begun_) co_return Received::kClosed;
    refuse(parser, error_response(408, "The request did not arrive in time."));
    co_return Received::kRefused;
  }
  co_return Received::kClosed;
}

Connection::TimePoint Connection::receive_deadline(const RequestParser& parser) const {
  const HttpOptions& options = context_.options;
  if (!begun_ && !first_request_) return phase_started_ + options.keep_alive_timeout;
  if (parser.state() == RequestParser::State::kHead) return phase_started_ + options.header_timeout;
  const TimePoint average =
      phase_started_ + 3 * options.body_timeout + std::chrono::seconds(body_bytes_ / 1024);
  return std::min(average, last_read_ + options.body_timeout);
}

// False: refused.
bool Connection::admit_head(RequestParser& parser) {
  if (std::optional<HttpResponse> refusal = context_.handler.admit(parser.request())) {
    refuse(parser, std::move(*refusal));
    return false;
  }
  phase_started_ = last_read_ = Clock::now();
  if (parser.expects_continue() && parser.state() == RequestParser::State::kBody &&
      parser.request().version == 11) {
    pending_ += kContinue;
    start_write();
  }
  return true;
}

// The rest of a request that is not read to its end cannot be told from the next one.
void Connection::refuse(RequestParser& parser, HttpResponse response) {
  if (parser.state() != RequestParser::State::kDone) closing_ = true;
  request_ = std::move(parser.request());
  first_request_ = false;
  queue_response(std::move(response));
}

void Connection::start_read() {
  if (reading_ || input_ended_ || gone() || input_.size() >= max_input_bytes()) return;
  reading_ = true;
  socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](error_code error) {
    self->reading_ = false;
    if (error) return self->leave();
    self->on_readable();
  });
}

void Connection::on_readable() {
  std::array<char, kReadBytes> bytes;
  error_code error;
  const size_t count = socket_.read_some(asio::buffer(bytes), error);
  input_.append(bytes.data(), count);
  if (count > 0) last_read_ = Clock::now();
  if (error == asio::error::eof) return on_end_of_input();
  if (error && error != asio::error::would_block) return leave();
  if (answering_) return start_read();
  wake();
}

void Connection::on_end_of_input() {
  input_ended_ = true;
  if (live_ && live_->streams) return leave();
  if (live_) return watch_for_reset();
  wake();
}

void Connection::watch_for_reset() {
  if (request_.version < 11) return leave();
  if (std::exchange(probed_, true)) return;
  socket_.async_wait(tcp::socket::wait_error, [self = shared_from_this()](error_code error) {
    if (!error) self->leave();
  });
  pending_ += kContinue;
  start_write();
}

// Answering.

void Connection::deliver(Answer answer) {
  answer_ = std::move(answer);
  wake();
}

asio::awaitable<void> Connection::answer() {
  answering_ = true;
  if (context_.handler.is_quick(request_)) {
    answer_ = context_.handler.handle(request_);
  } else {
    context_.dispatch(shared_from_this());
  }
  while (!answer_ && !gone()) {
    start_read();
    co_await event(TimePoint::max());
  }
  if (gone()) co_return;
  Answer answer = std::move(*answer_);
  answer_.reset();
  if (HttpResponse* response = std::get_if<HttpResponse>(&answer)) {
    queue_response(std::move(*response));
    co_await flush();
  } else {
    live_ = std::move(std::get<std::unique_ptr<LiveAnswer>>(answer));
    co_await send_live();
    live_.reset();
  }
  answering_ = false;
}

asio::awaitable<void> Connection::send_live() {
  const HttpOptions& options = context_.options;
  live_whole_ = false;
  if (input_ended_) on_end_of_input();
  if (gone()) co_return;
  if (live_->streams) queue_head(live_->response, true);
  poll();
  const auto tick = std::min<std::chrono::milliseconds>(kTick, options.stream_comment_after);
  while (!gone() && !(live_whole_ && written())) {
    start_read();
    const bool woke = co_await event(Clock::now() + tick);
    if (woke) continue;
    drop_if_stalled();
    poll();
    if (live_->streams && !live_whole_ && written() &&
        Clock::now() - last_write_ >= options.stream_comment_after) {
      queue_chunk(kSseComment);
    }
  }
}

void Connection::poll() {
  if (!live_ || live_whole_ || gone()) return;
  if (pending_.size() + sending_.size() - sent_ > context_.options.max_unsent_bytes) {
    log_debug("a client reads its stream too slowly: cut off");
    return abort();
  }
  try {
    live_whole_ = live_->advance();
  } catch (const std::exception& error) {
    log_error(std::string("an answer failed: ") + error.what());
    return abort();
  }
  if (live_->streams) {
    queue_chunk(live_->response.body);
    live_->response.body.clear();
    if (live_whole_ && request_.version == 11) pending_ += "0\r\n\r\n";
  } else if (live_whole_) {
    queue_response(std::move(live_->response));
  }
  start_write();
  if (live_whole_ && written()) wake();
}

asio::awaitable<void> Connection::flush() {
  start_write();
  while (!written() && !gone()) {
    start_read();
    co_await event(Clock::now() + kTick);
    drop_if_stalled();
  }
}

// A client that has not read the answer yet must not lose it to a reset, which closing with
// unread input would cause.
asio::awaitable<void> Connection::linger() {
  co_await flush();
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  answering_ = false;
  const auto patience = context_.options.linger_timeout;
  const TimePoint deadline =
      Clock::now() +
      (context_.draining ? std::min<std::chrono::milliseconds>(patience, kTick) : patience);
  uint64_t discarded_bytes = 0;
  while (!input_ended_ && !gone() && discarded_bytes < kMaxDiscardedBytes) {
    discarded_bytes += input_.size();
    input_.clear();
    start_read();
    const bool woke = co_await event(deadline);
    if (!woke) break;
  }
}

void Connection::start_write() {
  if (writing_ || gone()) return;
  if (sent_ == sending_.size()) {
    sending_.clear();
    sent_ = 0;
    sending_.swap(pending_);
  }
  if (sending_.empty()) return;
  writing_ = true;
  if (sent_ == 0) last_write_ = Clock::now();
  socket_.async_write_some(asio::buffer(sending_.data() + sent_, sending_.size() - sent_),
                           [self = shared_from_this()](error_code error, size_t count) {
                             self->writing_ = false;
                             if (error) return self->leave();
                             self->sent_ += count;
                             self->last_write_ = Clock::now();
                             self->start_write();
                             if (self->written() && (!self->live_ || self->live_whole_))
                               self->wake();
                           });
}

void Connection::drop_if_stalled() {
  if (writing_ && Clock::now() - last_write_ > context_.options.write_timeout) abort();
}

void Connection::queue_head(HttpResponse& response, bool streamed) {
  context_.handler.decorate(request_, response);
  const bool delimited = !streamed || request_.version == 11;
  if (!request_.keep_alive || context_.draining || !delimited) closing_ = true;
  lingers_ = closing_;
  pending_ += "HTTP/1.1 " + std::to_string(response.status) + ' ';
  const auto reason =
      boost::beast::http::obsolete_reason(static_cast<boost::beast::http::status>(response.status));
  pending_.append(reason.data(), reason.size());
  pending_ += "\r\nDate: " + http_date() + "\r\n";
  if (!response.content_type.empty()) pending_ += "Content-Type: " + response.content_type + "\r\n";
  for (const auto& [name, value] : response.headers) pending_ += name + ": " + value + "\r\n";
  if (!streamed && response.status != 204) {
    pending_ += "Content-Length: " + std::to_string(response.body.size()) + "\r\n";
  } else if (streamed && delimited) {
    pending_ += "Transfer-Encoding: chunked\r\n";
  }
  if (closing_) {
    pending_ += "Connection: close\r\n";
  } else if (request_.version == 10) {
    pending_ += "Connection: keep-alive\r\n";
  }
  pending_ += "\r\n";
}

void Connection::queue_response(HttpResponse response) {
  queue_head(response, false);
  if (request_.method != "HEAD") pending_ += response.body;
  start_write();
}

void Connection::queue_chunk(std::string_view bytes) {
  if (bytes.empty()) return;
  if (request_.version < 11) {
    pending_ += bytes;
  } else {
    char digits[16];
    const auto [end, error] = std::to_chars(digits, digits + sizeof(digits), bytes.size(), 16);
    pending_.append(digits, end).append("\r\n").append(bytes).append("\r\n");
  }
  start_write();
}

}  // namespace nibble
