// Router: HTTP requests -> endpoints, with what holds for all of them: API keys, cross-origin
// rules, error bodies, request ids, counts and the access log.
#pragma once

#include <optional>

#include "server/auth.h"
#include "server/http.h"
#include "server/http_counts.h"
#include "server/service.h"

namespace nibble {

class Router : public HttpHandler {
 public:
  // `counts` are those of the service.
  Router(const Service& service, HttpCounts& counts);

  std::optional<HttpResponse> admit(const HttpRequest& head) override;
  bool is_quick(const HttpRequest& request) override;
  Answer handle(const HttpRequest& request) override;
  void decorate(const HttpRequest& request, HttpResponse& response) override;

 private:
  bool allows_origin(std::string_view origin) const;
  void add_cors(const HttpRequest& request, HttpResponse& response) const;

  const Service& service_;
  HttpCounts& counts_;
  const ApiKeys keys_;
};

}  // namespace nibble
