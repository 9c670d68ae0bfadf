// OpenAI's error body: {"error": {"message", "type", "param", "code"}}.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "server/http.h"

namespace nibble {

inline constexpr size_t kMaxErrorBodyBytes = 4096;

// `code` empty: the status. At most kMaxErrorBodyBytes, whatever is put in; long text is cut.
std::string error_body(int status, std::string_view message, std::string_view param = "",
                       std::string_view code = "");

// With Retry-After where the client should come back (429, 503) and WWW-Authenticate for 401.
HttpResponse error_response(int status, std::string_view message, std::string_view param = "",
                            std::string_view code = "");
HttpResponse error_response(const ApiError& error);

}  // namespace nibble
