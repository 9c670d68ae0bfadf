// RequestParser: the bytes of one HTTP/1 request -> HttpRequest, within limits. No sockets.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "server/http.h"

namespace nibble {

class RequestParser {
 public:
  // kHead: more bytes are needed, and the head must stay in one piece until it is complete: bytes
  // that put() did not take come again. kBody: request() has its head.
  enum class State { kHead, kBody, kDone, kFailed };

  // Of the options only the limits matter.
  explicit RequestParser(const HttpOptions& options);
  ~RequestParser();

  // Returns the bytes taken. Stops after the head, whatever follows.
  size_t put(std::string_view bytes);

  State state() const { return state_; }
  bool expects_continue() const { return expects_continue_; }
  HttpRequest& request() { return request_; }

  // kFailed: the status and message of the answer.
  int status() const { return status_; }
  const std::string& message() const { return message_; }

 private:
  void take_head();
  void fail(int status, std::string message);

  struct Impl;
  std::unique_ptr<Impl> impl_;
  const HttpOptions& options_;
  State state_ = State::kHead;
  bool expects_continue_ = false;
  HttpRequest request_;
  int status_ = 0;
  std::string message_;
};

}  // namespace nibble
