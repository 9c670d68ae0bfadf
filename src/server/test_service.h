// A service without a model, for tests: the pocket's tokenizer and template, and an engine that
// does what the test says.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/check.h"
#include "server/http_counts.h"
#include "server/router.h"
#include "server/service.h"

namespace nibble {

class TestService {
 public:
  explicit TestService(ServerOptions given = {})
      : tokenizer(Tokenizer::load(kFolder)),
        chat_template(ChatTemplate::load(kFolder)),
        options(complete(std::move(given))),
        engine_options{.max_model_len = 512,
                       .max_waiting = 64,
                       .eos_token_ids = {*tokenizer->added_token("<|user|>")}},
        service{.options = options,
                .engine_options = engine_options,
                .engine_metrics = metrics,
                .http_counts = counts,
                .tokenizer = *tokenizer,
                .vocab_size = tokenizer->vocab_size() + kUnnamedIds,
                .chat_template = chat_template.get(),
                .submit = [this](Request request) { return submit(std::move(request)); },
                .healthy = [this] { return healthy; },
                .tags = TagIds(*tokenizer)},
        router(service, counts) {}

  // The engine generates `text` (tags as their tokens), then ends for that reason.
  void say(const std::string& text, FinishReason reason = FinishReason::kStop) {
    script = tokenizer->encode(text);
    finish = {.reason = reason};
    if (reason == FinishReason::kStop) finish.stop_token = {.id = engine_options.eos_token_ids[0]};
  }

  // The answer of a POST; a stream's body in one piece.
  HttpResponse post(const std::string& path, const std::string& body) {
    const HttpRequest request{.method = "POST", .path = path, .body = body};
    Answer answer = router.handle(request);
    if (HttpResponse* response = std::get_if<HttpResponse>(&answer)) return std::move(*response);
    LiveAnswer& live = *std::get<std::unique_ptr<LiveAnswer>>(answer);
    CHECK(live.advance());
    return std::move(live.response);
  }
  nlohmann::ordered_json post_json(const std::string& path, const std::string& body) {
    return nlohmann::ordered_json::parse(post(path, body).body);
  }
  // The events of a stream, without [DONE], which must end it.
  std::vector<nlohmann::ordered_json> post_stream(const std::string& path,
                                                  const std::string& body) {
    std::vector<nlohmann::ordered_json> events;
    std::string text = post(path, body).body;
    constexpr std::string_view kDone = "data: [DONE]\n\n";
    CHECK(text.ends_with(kDone), "%s", text.c_str());
    text.resize(text.size() - kDone.size());
    for (size_t start = 0; start < text.size();) {
      const size_t end = text.find("\n\n", start);
      CHECK(text.substr(start, 6) == "data: ");
      events.push_back(nlohmann::ordered_json::parse(text.substr(start + 6, end - start - 6)));
      start = end + 2;
    }
    return events;
  }

  static constexpr int kUnnamedIds = 10;  // of the model, beyond the tokenizer
  static constexpr const char* kFolder = NIBBLE_SOURCE_DIR "/models/pocket";
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;
  ServerOptions options;
  EngineOptions engine_options;
  EngineMetrics metrics;
  HttpCounts counts;
  Service service;
  Router router;
  bool healthy = true;

  std::vector<int32_t> script{};
  Finish finish{};
  bool with_logprobs = false;
  std::vector<Request> requests{};  // as submitted
  std::vector<std::shared_ptr<TokenStream>> streams{};

 private:
  static ServerOptions complete(ServerOptions options) {
    if (options.model_names.empty()) options.model_names = {"pocket", "alias"};
    options.version = "1.2.3";
    options.access_log = false;
    return options;
  }

  TokenLogprobs logprobs_of(int32_t id) const {
    return {.logprob = -0.5f, .top = {{id, -0.5f}, {id + 1, -1.5f}, {id + 2, -2.5f}}};
  }

  std::shared_ptr<TokenStream> submit(Request request) {
    auto stream = std::make_shared<TokenStream>();
    stream->set_cached_tokens(3);
    if (request.sampling.prompt_logprobs >= 0) {
      std::vector<TokenLogprobs> logprobs;
      for (size_t i = 1; i < request.prompt.size(); ++i) {
        logprobs.push_back(logprobs_of(request.prompt[i]));
      }
      stream->push_prompt_logprobs(std::move(logprobs));
    }
    for (const int32_t id : script) {
      Token token{.id = id};
      if (request.sampling.logprobs >= 0) token.logprobs = logprobs_of(id);
      stream->push(std::move(token));
    }
    Finish end = finish;
    if (end.stop_token && request.sampling.logprobs >= 0) {
      end.stop_token->logprobs = logprobs_of(end.stop_token->id);
    }
    stream->finish(std::move(end));
    requests.push_back(std::move(request));
    streams.push_back(stream);
    return stream;
  }
};

}  // namespace nibble
