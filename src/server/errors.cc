#include "server/errors.h"

#include "base/utf8.h"
#include "server/json_writer.h"

namespace nibble {
namespace {

// Escaping makes a byte at most six, or repairs it into three.
constexpr size_t kMaxMessageBytes = 500;
constexpr size_t kMaxParamBytes = 100;

std::string_view error_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "NotFoundError";
    case 405:
      return "MethodNotAllowedError";
    case 408:
      return "RequestTimeoutError";
    case 413:
      return "RequestTooLargeError";
    case 422:
      return "UnprocessableEntityError";
    case 429:
      return "RateLimitError";
    case 431:
      return "HeadersTooLargeError";
    case 501:
      return "NotImplementedError";
    case 503:
      return "ServiceUnavailableError";
    default:
      return status < 500 ? "BadRequestError" : "InternalServerError";
  }
}

// At most `limit` bytes, cut between characters.
std::string shorten(std::string_view text, size_t limit) {
  if (text.size() <= limit) return std::string(text);
  std::string result;
  append_valid_utf8(text.substr(0, limit - 3), true, result);
  return result + "...";
}

}  // namespace

std::string error_body(int status, std::string_view message, std::string_view param,
                       std::string_view code) {
  JsonWriter writer;
  writer.begin_object().key("error").begin_object();
  writer.key("message").string(shorten(message, kMaxMessageBytes));
  writer.key("type").string(error_type(status));
  if (param.empty()) {
    writer.key("param").null();
  } else {
    writer.key("param").string(shorten(param, kMaxParamBytes));
  }
  if (code.empty()) {
    writer.key("code").integer(status);
  } else {
    writer.key("code").string(code);
  }
  return writer.end_object().end_object().take();
}

HttpResponse error_response(int status, std::string_view message, std::string_view param,
                            std::string_view code) {
  HttpResponse response{.status = status, .body = error_body(status, message, param, code)};
  if (status == 429 || status == 503) response.headers.emplace_back("Retry-After", "1");
  if (status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

HttpResponse error_response(const ApiError& error) {
  return error_response(error.status, error.what(), error.param, error.code);
}

}  // namespace nibble
