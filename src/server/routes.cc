#include "server/routes.h"

#include "server/endpoints.h"

namespace nibble {
namespace {

constexpr Route kRoutes[] = {
    {"POST", "/v1/chat/completions", chat_completions},
    {"POST", "/v1/completions", completions},
    {"POST", "/v1/chat/completions/render", render_chat_prompt},
    {"POST", "/v1/completions/render", render_completion_prompt},
    {"POST", "/tokenize", tokenize},
    {"POST", "/detokenize", detokenize},
    {.method = "GET", .path = "/v1/models", .handler = list_models, .quick = true},
    {.method = "GET", .path = "/v1/models/*", .handler = show_model, .quick = true},
    {.method = "GET", .path = "/health", .handler = health, .quick = true, .open = true},
    {.method = "GET", .path = "/ping", .handler = health, .quick = true, .open = true},
    {.method = "POST", .path = "/ping", .handler = health, .quick = true, .open = true},
    {.method = "GET", .path = "/version", .handler = version, .quick = true, .open = true},
    {.method = "GET", .path = "/metrics", .handler = metrics, .quick = true, .open = true},
};

bool matches(const Route& route, std::string_view path) {
  if (!route.path.ends_with('*')) return route.path == path;
  const std::string_view prefix = route.path.substr(0, route.path.size() - 1);
  return path.size() > prefix.size() && path.starts_with(prefix);
}

// Calls visit(route) for the routes of that path.
template <typename Visit>
void for_each_route(std::string_view path, Visit visit) {
  constexpr std::string_view kVersion = "/v1";
  for (const Route& route : kRoutes) {
    const bool versioned = route.path.starts_with(kVersion);
    if (matches(route, path) ||
        (versioned && matches(route, std::string(kVersion) + std::string(path)))) {
      visit(route);
    }
  }
}

}  // namespace

std::span<const Route> routes() {
  return kRoutes;
}

const Route* find_route(std::string_view method, std::string_view path) {
  if (method == "HEAD") method = "GET";
  const Route* found = nullptr;
  for_each_route(path, [&](const Route& route) {
    if (!found && route.method == method) found = &route;
  });
  return found;
}

std::string allowed_methods(std::string_view path) {
  std::string methods;
  for_each_route(path, [&](const Route& route) {
    if (!methods.empty()) methods += ", ";
    methods += route.method;
    if (route.method == "GET") methods += ", HEAD";
  });
  if (!methods.empty()) methods += ", OPTIONS";
  return methods;
}

}  // namespace nibble
