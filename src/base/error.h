// The two failures that are not our bugs (those are CHECK's).
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace nibble {

// A file, device or start-up failure. The message names the file, field or flag and what would be
// right. Caught in main: one line on stderr, exit status 1.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A client's mistake. Caught in the HTTP handler, which answers `status` with OpenAI's error body.
class ApiError : public std::runtime_error {
 public:
  // `param` is the dotted path of the field at fault, or empty. `code`, when not empty, replaces
  // the status as error.code (OpenAI's string form, such as "context_length_exceeded").
  ApiError(int status, const std::string& message, std::string param = "", std::string code = "")
      : std::runtime_error(message),
        status(status),
        param(std::move(param)),
        code(std::move(code)) {}

  int status;
  std::string param;
  std::string code;
};

}  // namespace nibble
