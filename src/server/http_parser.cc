#include "server/http_parser.h"

#include <algorithm>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <optional>
#include <utility>

namespace nibble {
namespace {

namespace beast_http = boost::beast::http;

// What is left of an unfinished chunked body is never shorter than its end, "0", CRLF, CRLF. The
// library asserts that it sees as much.
constexpr size_t kMinChunkedBytes = 5;

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c;
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = lower(c);
  return result;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c = lower(c);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

std::optional<std::string> percent_decode(std::string_view text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      result += text[i];
      continue;
    }
    if (i + 2 >= text.size()) return std::nullopt;
    const int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
    if (high < 0 || low < 0) return std::nullopt;
    result += char(high << 4 | low);
    i += 2;
  }
  return result;
}

// "http://host/path" -> "/path"; other targets stay.
std::string_view strip_authority(std::string_view target) {
  const size_t scheme = target.find("://");
  if (scheme == std::string_view::npos || target.front() == '/') return target;
  const size_t path = target.find('/', scheme + 3);
  return path == std::string_view::npos ? "/" : target.substr(path);
}

}  // namespace

struct RequestParser::Impl {
  beast_http::request_parser<beast_http::string_body> parser;
};

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (key == name) return value;
  }
  return {};
}

RequestParser::RequestParser(const HttpOptions& options)
    : impl_(std::make_unique<Impl>()), options_(options) {
  impl_->parser.header_limit(options.max_header_bytes);
  impl_->parser.body_limit(options.max_body_bytes);
}

RequestParser::~RequestParser() = default;

void RequestParser::fail(int status, std::string message) {
  state_ = State::kFailed;
  status_ = status;
  message_ = std::move(message);
}

size_t RequestParser::put(std::string_view bytes) {
  size_t taken = 0;
  while (taken < bytes.size() && (state_ == State::kHead || state_ == State::kBody)) {
    boost::system::error_code error;
    const std::string_view rest = bytes.substr(taken);
    if (state_ == State::kBody && impl_->parser.chunked() && rest.size() < kMinChunkedBytes) break;
    const size_t count = impl_->parser.put(boost::asio::buffer(rest.data(), rest.size()), error);
    taken += count;
    const bool was_head = state_ == State::kHead;
    if (was_head && impl_->parser.is_header_done()) take_head();
    if (state_ == State::kFailed || error == beast_http::error::need_more) break;
    if (error == beast_http::error::header_limit) {
      fail(431, "The request's head is larger than " + std::to_string(options_.max_header_bytes) +
                    " bytes.");
    } else if (error == beast_http::error::body_limit) {
      fail(413, "The request's body is larger than " + std::to_string(options_.max_body_bytes) +
                    " bytes.");
    } else if (error) {
      fail(400, "Not an HTTP request: " + error.message() + ".");
    } else if (impl_->parser.is_done()) {
      request_.body = std::move(impl_->parser.get().body());
      state_ = State::kDone;
    }
    if (was_head || count == 0) break;
  }
  return taken;
}

void RequestParser::take_head() {
  const auto& message = impl_->parser.get();
  state_ = State::kBody;
  request_.method = std::string(message.method_string());
  request_.version = int(message.version());
  request_.keep_alive = message.keep_alive();
  for (const auto& field : message) {
    const boost::core::string_view name = field.name_string();
    request_.headers.emplace_back(lower({name.data(), name.size()}), std::string(field.value()));
  }
  const std::string_view target =
      strip_authority({message.target().data(), message.target().size()});
  const size_t question = target.find('?');
  std::optional<std::string> path = percent_decode(target.substr(0, question));
  if (question != std::string_view::npos) request_.query = target.substr(question + 1);
  expects_continue_ = lower(request_.header("expect")) == "100-continue";

  const std::string_view encoding = request_.header("transfer-encoding");
  if (request_.headers.size() > options_.max_header_fields) {
    fail(431, "The request has more than " + std::to_string(options_.max_header_fields) +
                  " header fields.");
  } else if (!path) {
    fail(400, "The request's path has a broken percent escape.");
  } else if (!encoding.empty() && lower(encoding) != "chunked") {
    fail(501, "The transfer encoding is not supported: only chunked is.");
  } else {
    request_.path = std::move(*path);
  }
}

}  // namespace nibble
