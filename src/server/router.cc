#include "server/router.h"

#include <algorithm>
#include <string>

#include "base/log.h"
#include "server/answer_parts.h"
#include "server/errors.h"
#include "server/routes.h"

namespace nibble {
namespace {

constexpr size_t kMaxRequestIdBytes = 256;

std::string join(const std::vector<std::string>& items) {
  std::string result;
  for (const std::string& item : items) result += (result.empty() ? "" : ", ") + item;
  return result;
}

// Browsers send forms and plain text across origins unasked; JSON they do not.
bool is_json(std::string_view content_type) {
  std::string type(content_type.substr(0, content_type.find(';')));
  std::transform(type.begin(), type.end(), type.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  while (type.ends_with(' ')) type.pop_back();
  return type.empty() || type == "application/json" || type.ends_with("+json");
}

}  // namespace

Router::Router(const Service& service, HttpCounts& counts)
    : service_(service), counts_(counts), keys_(service.options.api_keys) {}

std::optional<HttpResponse> Router::admit(const HttpRequest& head) {
  const std::string methods = allowed_methods(head.path);
  if (head.method == "OPTIONS" && !methods.empty()) {
    return HttpResponse{.status = 204, .content_type = "", .headers = {{"Allow", methods}}};
  }
  const Route* route = find_route(head.method, head.path);
  if (!(route && route->open) && !keys_.allow(head)) {
    return error_response(401,
                          "No valid API key: send it as `Authorization: Bearer KEY` or as "
                          "`X-Api-Key: KEY`.");
  }
  if (!route && methods.empty()) {
    return error_response(404, "There is no " + head.path + " here.");
  }
  if (!route) {
    HttpResponse response = error_response(405, head.path + " allows " + methods + ".");
    response.headers.emplace_back("Allow", methods);
    return response;
  }
  if (route->method == "POST" && !is_json(head.header("content-type"))) {
    return error_response(415, "The Content-Type must be application/json.");
  }
  return std::nullopt;
}

bool Router::is_quick(const HttpRequest& request) {
  return find_route(request.method, request.path)->quick;
}

Answer Router::handle(const HttpRequest& request) {
  try {
    return find_route(request.method, request.path)->handler(service_, request);
  } catch (const ApiError& error) {
    return error_response(error);
  } catch (const std::exception& error) {
    log_error("a request failed: " + std::string(error.what()));
    return error_response(500, "The server failed to handle the request.");
  }
}

void Router::decorate(const HttpRequest& request, HttpResponse& response) {
  const Route* route = find_route(request.method, request.path);
  counts_.add(route ? std::string(route->path) : "none", route ? request.method : "none",
              response.status);
  if (service_.options.access_log) {
    log_info("\"" + request.method + " " + request.path.substr(0, 200) + "\" " +
             std::to_string(response.status));
  }
  std::string id(request.header("x-request-id"));
  if (id.empty() || id.size() > kMaxRequestIdBytes) id = random_id("");
  response.headers.emplace_back("X-Request-Id", id);
  add_cors(request, response);
}

bool Router::allows_origin(std::string_view origin) const {
  const auto& allowed = service_.options.cors.allowed_origins;
  return std::any_of(allowed.begin(), allowed.end(),
                     [&](const std::string& item) { return item == "*" || item == origin; });
}

void Router::add_cors(const HttpRequest& request, HttpResponse& response) const {
  const CorsOptions& cors = service_.options.cors;
  const std::string_view origin = request.header("origin");
  if (origin.empty() || !allows_origin(origin)) return;
  const auto add = [&](const char* name, std::string value) {
    response.headers.emplace_back(name, std::move(value));
  };
  add("Access-Control-Allow-Origin", std::string(origin));
  add("Vary", "Origin");
  if (cors.allow_credentials) add("Access-Control-Allow-Credentials", "true");
  if (request.method != "OPTIONS") return;
  const auto wildcard = [](const std::vector<std::string>& list, std::string_view asked) {
    const bool all = std::find(list.begin(), list.end(), "*") != list.end();
    return all && !asked.empty() ? std::string(asked) : join(list);
  };
  add("Access-Control-Allow-Methods",
      wildcard(cors.allowed_methods, request.header("access-control-request-method")));
  add("Access-Control-Allow-Headers",
      wildcard(cors.allowed_headers, request.header("access-control-request-headers")));
  add("Access-Control-Max-Age", "600");
}

}  // namespace nibble
