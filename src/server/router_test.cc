#include "server/router.h"

#include <gtest/gtest.h>

#include <string>

#include "server/routes.h"
#include "server/test_service.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

// The status of the refusal, or 0.
int refusal(Router& router, const HttpRequest& head) {
  const std::optional<HttpResponse> response = router.admit(head);
  return response ? response->status : 0;
}

std::string header(const HttpResponse& response, std::string_view name) {
  for (const auto& [key, value] : response.headers) {
    if (key == name) return value;
  }
  return "";
}

HttpResponse get(TestService& service, const std::string& path) {
  return std::get<HttpResponse>(service.router.handle({.method = "GET", .path = path}));
}

TEST(Router, FindsRoutes) {
  EXPECT_NE(find_route("POST", "/v1/chat/completions"), nullptr);
  EXPECT_EQ(find_route("POST", "/chat/completions"), find_route("POST", "/v1/chat/completions"));
  EXPECT_EQ(find_route("HEAD", "/health"), find_route("GET", "/health"));
  EXPECT_EQ(find_route("GET", "/v1/chat/completions"), nullptr);
  EXPECT_EQ(find_route("GET", "/v1/models/"), nullptr);
  EXPECT_NE(find_route("GET", "/v1/models/a/b"), nullptr);
  EXPECT_EQ(allowed_methods("/ping"), "GET, HEAD, POST, OPTIONS");
  EXPECT_EQ(allowed_methods("/nowhere"), "");
}

TEST(Router, RefusesWhatIsNotThere) {
  TestService service;
  EXPECT_EQ(refusal(service.router, {.method = "GET", .path = "/nowhere"}), 404);
  EXPECT_EQ(refusal(service.router, {.method = "GET", .path = "/v1/completions"}), 405);
  EXPECT_EQ(refusal(service.router, {.method = "OPTIONS", .path = "/v1/completions"}), 204);
  EXPECT_EQ(refusal(service.router, {.method = "OPTIONS", .path = "/nowhere"}), 404);
  EXPECT_EQ(refusal(service.router, {.method = "POST", .path = "/v1/completions"}), 0);
  HttpRequest form{.method = "POST", .path = "/v1/completions"};
  form.headers = {{"content-type", "application/x-www-form-urlencoded"}};
  EXPECT_EQ(refusal(service.router, form), 415);
  form.headers = {{"content-type", "Application/JSON; charset=utf-8"}};
  EXPECT_EQ(refusal(service.router, form), 0);
}

TEST(Router, AsksForKeys) {
  TestService service({.api_keys = {"first", "second"}});
  const auto with = [&](const std::string& path, HttpHeaders headers) {
    return refusal(service.router, {.method = "GET", .path = path, .headers = std::move(headers)});
  };
  for (const char* path : {"/health", "/ping", "/version", "/metrics"})
    EXPECT_EQ(with(path, {}), 0);
  EXPECT_EQ(with("/v1/models", {}), 401);
  EXPECT_EQ(with("/nowhere", {}), 401);
  EXPECT_EQ(with("/v1/models", {{"authorization", "Bearer first"}}), 0);
  EXPECT_EQ(with("/v1/models", {{"authorization", "bearer second"}}), 0);
  EXPECT_EQ(with("/v1/models", {{"x-api-key", "second"}}), 0);
  EXPECT_EQ(with("/v1/models", {{"authorization", "Bearer firs"}}), 401);
  EXPECT_EQ(with("/v1/models", {{"authorization", "first"}}), 401);
  EXPECT_EQ(with("/v1/models", {{"authorization", "Bearer "}, {"x-api-key", ""}}), 401);
}

TEST(Router, AddsRequestIdsAndCrossOriginFields) {
  TestService service({.cors = {.allowed_origins = {"https://a.example"}}});
  HttpRequest request{.method = "GET", .path = "/health"};
  request.headers = {{"x-request-id", "abc"}, {"origin", "https://a.example"}};
  HttpResponse response;
  service.router.decorate(request, response);
  EXPECT_EQ(header(response, "X-Request-Id"), "abc");
  EXPECT_EQ(header(response, "Access-Control-Allow-Origin"), "https://a.example");
  request.headers = {{"origin", "https://b.example"}};
  response = {};
  service.router.decorate(request, response);
  EXPECT_EQ(header(response, "X-Request-Id").size(), 32u);
  EXPECT_EQ(header(response, "Access-Control-Allow-Origin"), "");
  request.method = "OPTIONS";
  request.headers = {{"origin", "https://a.example"}, {"access-control-request-headers", "x-a"}};
  response = {};
  service.router.decorate(request, response);
  EXPECT_EQ(header(response, "Access-Control-Allow-Headers"), "x-a");
}

TEST(Router, AnswersTheSmallEndpoints) {
  TestService service({.model_root = "/models/pocket"});
  EXPECT_EQ(get(service, "/health").status, 200);
  EXPECT_EQ(get(service, "/health").body, "");
  EXPECT_EQ(get(service, "/version").body, R"({"version":"1.2.3"})");
  const Json models = Json::parse(get(service, "/v1/models").body);
  EXPECT_EQ(models["data"].size(), 2u);
  EXPECT_EQ(models["data"][0]["id"], "pocket");
  EXPECT_EQ(models["data"][0]["max_model_len"], 512);
  EXPECT_EQ(Json::parse(get(service, "/v1/models/alias").body)["id"], "alias");
  EXPECT_EQ(get(service, "/v1/models/other").status, 404);
  service.healthy = false;
  EXPECT_EQ(get(service, "/health").status, 503);
}

TEST(Router, WritesMetrics) {
  TestService service({.model_names = {"a\"b"}});
  service.metrics.num_pages = 10;
  service.metrics.num_pages_used = 5;
  service.metrics.request_success[1] = 3;
  service.metrics.time_to_first_token.observe(0.003);
  HttpResponse ignored;
  service.router.decorate({.method = "GET", .path = "/health"}, ignored);
  service.router.decorate({.method = "BREW", .path = "/secret"}, ignored);
  const std::string text = get(service, "/metrics").body;
  const std::string labels = R"({engine="0",model_name="a\"b")";
  for (const std::string& line :
       {"vllm:kv_cache_usage_perc" + labels + "} 0.5",
        "vllm:gpu_cache_usage_perc" + labels + "} 0.5",
        "vllm:request_success_total" + labels + ",finished_reason=\"length\"} 3",
        "vllm:time_to_first_token_seconds_bucket" + labels + ",le=\"0.005\"} 1",
        "vllm:time_to_first_token_seconds_bucket" + labels + ",le=\"+Inf\"} 1",
        std::string("vllm:num_requests_running") + labels + "} 0", std::string("block_size=\"16\""),
        std::string(
            R"(http_requests_total{handler="/health",method="GET",status="2xx",code="200"} 1)"),
        std::string(
            R"(http_requests_total{handler="none",method="none",status="2xx",code="200"} 1)")}) {
    EXPECT_NE(text.find(line), std::string::npos) << line;
  }
}

TEST(Router, ErrorsAreAnswers) {
  TestService service;
  const HttpResponse response = service.post("/v1/chat/completions", "{");
  EXPECT_EQ(response.status, 400);
  EXPECT_TRUE(Json::parse(response.body).contains("error"));
}

}  // namespace
}  // namespace nibble
