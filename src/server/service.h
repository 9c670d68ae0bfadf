// What the endpoints work with. Set up once, then constant and shared by all threads.
#pragma once

#include <functional>
#include <memory>

#include "engine/engine.h"
#include "server/http.h"
#include "server/options.h"
#include "text/chat_template.h"
#include "text/output_parser.h"
#include "text/tag_ids.h"
#include "text/tokenizer.h"

namespace nibble {

class HttpCounts;

struct Service {
  const ServerOptions& options;
  const EngineOptions& engine_options;
  const EngineMetrics& engine_metrics;
  const HttpCounts& http_counts;  // I/O thread only
  const Tokenizer& tokenizer;
  int vocab_size = 0;                           // the model's: the tokenizer may know fewer ids
  const ChatTemplate* chat_template = nullptr;  // nullptr: the checkpoint has none
  std::function<std::shared_ptr<TokenStream>(Request)> submit{};
  std::function<bool()> healthy{};
  TagIds tags;
  int64_t started_s = 0;  // Unix time

  const std::string& model_name() const { return options.model_names.front(); }
};

// An endpoint. Throws ApiError. Those that take time run on a worker.
using Handler = Answer (*)(const Service& service, const HttpRequest& request);

}  // namespace nibble
