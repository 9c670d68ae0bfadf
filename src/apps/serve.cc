// nibble serve: the HTTP server over an engine on a thread of its own.
#include <atomic>
#include <cstdio>

#include "apps/model_files.h"
#include "apps/session.h"
#include "apps/subcommands.h"
#include "base/error.h"
#include "base/log.h"
#include "server/generation_defaults.h"
#include "server/server.h"

namespace nibble {
namespace {

nlohmann::ordered_json parse_object(const std::string& flag, const std::string& text) {
  if (text.empty()) return {};
  auto json = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) throw Error(flag + " " + text + ": must be a JSON object");
  return json;
}

// A JSON list, as vLLM takes it, or single origins.
std::vector<std::string> parse_origins(const std::vector<std::string>& words) {
  std::vector<std::string> origins;
  for (const std::string& word : words) {
    const auto json = nlohmann::json::parse(word, nullptr, /*allow_exceptions=*/false);
    if (!json.is_array()) {  // the command line's parser may have taken the list apart
      origins.push_back(json.is_string() ? json.get<std::string>() : word);
      continue;
    }
    for (const auto& item : json) {
      if (!item.is_string())
        throw Error("--allowed-origins " + word + ": must be a list of strings");
      origins.push_back(item.get<std::string>());
    }
  }
  return origins;
}

bool parser_enabled(const std::string& flag, const std::string& name) {
  for (const char* known : {"", "glm45", "glm47", "glm47_moe", "deepseek_r1", "auto"}) {
    if (name == known) return true;
  }
  if (name == "none") return false;
  throw Error(flag + " " + name +
              ": there is no such parser; use glm45, glm47, deepseek_r1 or none");
}

ReasoningField reasoning_field_of(const std::string& name) {
  if (name == "reasoning") return ReasoningField::kReasoning;
  if (name == "reasoning_content") return ReasoningField::kReasoningContent;
  return name == "none" ? ReasoningField::kNone : ReasoningField::kBoth;
}

LogLevel log_level_of(const std::string& name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "warning") return LogLevel::kWarning;
  return name == "error" ? LogLevel::kError : LogLevel::kInfo;
}

ServerOptions server_options(const ServeOptions& o, const std::filesystem::path& folder) {
  ServerOptions s;
  s.host = o.host;
  s.port = uint16_t(o.port);
  s.cors.allowed_origins = parse_origins(o.allowed_origins);
  s.api_keys = o.api_keys;
  s.model_names = o.served_model_names;
  if (s.model_names.empty()) s.model_names = {model_name(o.model.model)};
  s.model_root = folder.string();
  s.version = NIBBLE_VERSION;
  s.generation =
      load_generation_defaults(folder, o.generation_config, o.override_generation_config);
  s.default_template_kwargs =
      parse_object("--default-chat-template-kwargs", o.default_chat_template_kwargs);
  s.parse_special_tokens_in_messages = o.parse_special_tokens_in_messages;
  s.reasoning_parser = parser_enabled("--reasoning-parser", o.reasoning_parser);
  s.tool_call_parser = parser_enabled("--tool-call-parser", o.tool_call_parser);
  s.reasoning_field = reasoning_field_of(o.reasoning_field);
  s.return_tokens_as_token_ids = o.return_tokens_as_token_ids;
  s.access_log = !o.no_access_log;
  s.cache_dtype = o.model.kv_cache_dtype;
  return s;
}

// What a person wants to know first: where it is, and how to try it.
void print_invitation(const ServerOptions& options, uint16_t port, const Session& session) {
  const EngineOptions& engine = session.engine().options();
  log_info(session.runtime->backend->description() + ", context " +
           std::to_string(engine.max_model_len) + " tokens, cache " +
           std::to_string(engine.num_pages * engine.page_size) + " tokens");
  const bool open = options.host == "0.0.0.0" || options.host == "::";
  std::string host = open ? "localhost" : options.host;
  if (host.find(':') != std::string::npos) host = "[" + host + "]";  // an address of IPv6
  const std::string url = "http://" + host + ":" + std::to_string(port);
  std::string authorization;
  if (!options.api_keys.empty()) authorization = " -H \"Authorization: Bearer $KEY\"";
  std::printf(
      "\nServing %s at %s/v1%s. Try:\n\n"
      "  curl %s/v1/chat/completions -H 'Content-Type: application/json'%s \\\n"
      "    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"What is the sum of 948 and "
      "7?\"}]}'"
      "\n\n",
      options.model_names.front().c_str(), url.c_str(),
      open ? "" : " (this machine only; --host 0.0.0.0 opens it)", url.c_str(),
      authorization.c_str());
  std::fflush(stdout);
}

}  // namespace

int serve(const ServeOptions& options) {
  set_log_level(log_level_of(options.log_level));
  const ServerOptions for_server = server_options(options, find_model(options.model.model));
  std::atomic<Server*> listening{nullptr};
  const Engine* engine = nullptr;
  Session session(options.model, options.chat_template, [&] {
    Server* server = listening.load(std::memory_order_acquire);
    if (server == nullptr) return;
    server->on_step();
    if (!engine->healthy()) server->stop();
  });
  engine = &session.engine();
  Server server(for_server, session.engine(), *session.tokenizer, session.chat_template.get());
  listening.store(&server, std::memory_order_release);
  session.runtime->start();
  print_invitation(for_server, server.port(), session);
  server.run();
  const bool failed = !engine->healthy();
  session.runtime->stop(/*drain=*/false);
  listening.store(nullptr, std::memory_order_release);
  log_info(failed ? "stopped, because the engine failed" : "stopped");
  return failed ? 1 : 0;
}

}  // namespace nibble
