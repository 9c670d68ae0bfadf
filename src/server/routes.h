// The table of contents: method and path -> endpoint.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "server/service.h"

namespace nibble {

struct Route {
  std::string_view method;
  std::string_view path;  // with "*" at the end: every path that begins so
  Handler handler;
  bool quick = false;  // runs on the I/O thread
  bool open = false;   // needs no API key
};

std::span<const Route> routes();

// HEAD finds GET. Paths may leave out "/v1", as with llama-server. nullptr: none.
const Route* find_route(std::string_view method, std::string_view path);

// The methods of that path, as "GET, POST"; empty when there is no such path.
std::string allowed_methods(std::string_view path);

}  // namespace nibble
