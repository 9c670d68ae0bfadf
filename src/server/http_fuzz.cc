// Bytes of a connection, in pieces of any size, through the parser and its limits.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "server/errors.h"
#include "server/http_parser.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using nibble::RequestParser;
  nibble::HttpOptions options;
  options.max_header_bytes = 512;
  options.max_header_fields = 16;
  options.max_body_bytes = 1024;
  if (size == 0) return 0;
  const size_t piece = 1 + data[0];
  std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  std::string input;
  for (int requests = 0; requests < 8; ++requests) {
    RequestParser parser(options);
    while (parser.state() == RequestParser::State::kHead ||
           parser.state() == RequestParser::State::kBody) {
      const size_t taken = parser.put(input);
      CHECK(taken <= input.size());
      input.erase(0, taken);
      if (taken > 0 && !input.empty()) continue;
      if (rest.empty()) break;
      input += rest.substr(0, piece);
      rest.remove_prefix(std::min(piece, rest.size()));
    }
    if (parser.state() == RequestParser::State::kFailed) {
      CHECK(parser.status() >= 400 && parser.status() < 600);
      CHECK(nibble::error_body(parser.status(), parser.message()).size() <=
            nibble::kMaxErrorBodyBytes);
      return 0;
    }
    if (parser.state() != RequestParser::State::kDone) return 0;
    CHECK(parser.request().body.size() <= options.max_body_bytes);
    CHECK(parser.request().headers.size() <= options.max_header_fields);
  }
  return 0;
}
