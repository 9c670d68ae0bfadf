#include "apps/vllm_flags.h"

#include <algorithm>
#include <string_view>

#include "base/error.h"

namespace nibble {
namespace {

enum class Kind { kSwitch, kValue, kValues };
enum class Treatment { kSilent, kIgnored, kRefused };

struct Rule {
  std::string_view name;
  Kind kind;
  Treatment treatment;
  std::string_view reason;
  std::string_view harmless = "";  // values, separated by spaces, that pass without a word
};

constexpr auto kSwitch = Kind::kSwitch;
constexpr auto kValue = Kind::kValue;
constexpr auto kValues = Kind::kValues;
constexpr auto kSilent = Treatment::kSilent;
constexpr auto kIgnored = Treatment::kIgnored;
constexpr auto kRefused = Treatment::kRefused;

constexpr Rule kRules[] = {
    {"--trust-remote-code", kSwitch, kSilent, "no code of a checkpoint is ever run"},
    {"--enable-chunked-prefill", kSwitch, kSilent, "long prompts are always cut to the budget"},
    {"--enforce-eager", kSwitch, kSilent, "a card's graphs are recorded as they are needed"},
    {"--no-enforce-eager", kSwitch, kSilent, ""},
    {"--enable-auto-tool-choice", kSwitch, kSilent, "tool calls are always parsed"},
    {"--async-scheduling", kSwitch, kSilent, ""},
    {"--disable-log-stats", kSwitch, kSilent, ""},
    {"--disable-log-requests", kSwitch, kSilent, "requests are not logged"},
    {"--enable-prompt-tokens-details", kSwitch, kSilent, "always given"},
    {"--generation-config-format", kValue, kIgnored, ""},
    {"--prefix-caching-hash-algo", kValue, kIgnored, "keys are XXH3 with a secret"},
    {"--chat-template-content-format", kValue, kIgnored, "text parts are joined to strings",
     "auto"},
    {"--structured-outputs-config", kValue, kIgnored, "there is no grammar engine to configure"},
    {"--structured-outputs-config.backend", kValue, kIgnored,
     "there is no grammar engine to configure", "auto"},
    {"--guided-decoding-backend", kValue, kIgnored, "there is no grammar engine to configure"},
    {"--reasoning-config", kValue, kIgnored, "tags are the model's own"},
    {"--exclude-tools-when-tool-choice-none", kSwitch, kIgnored, "the template gets all tools"},
    {"--scheduling-policy", kValue, kRefused, "requests are served first come, first served",
     "fcfs"},
    {"--stream-interval", kValue, kRefused, "every token is sent when it is there", "1"},
    {"--logprobs-mode", kValue, kRefused, "log-probabilities are those of the raw logits",
     "raw_logprobs"},
    {"--tensor-parallel-size", kValue, kRefused, "the model runs on one device", "1"},
    {"-tp", kValue, kRefused, "the model runs on one device", "1"},
    {"--pipeline-parallel-size", kValue, kRefused, "the model runs on one device", "1"},
    {"-pp", kValue, kRefused, "the model runs on one device", "1"},
    {"--data-parallel-size", kValue, kRefused, "the model runs on one device", "1"},
    {"-dp", kValue, kRefused, "the model runs on one device", "1"},
    {"--enable-expert-parallel", kSwitch, kRefused, "the model runs on one device"},
    {"--distributed-executor-backend", kValue, kIgnored, "the model runs on one device"},
    {"--speculative-config", kValue, kRefused, "this version does not draft tokens"},
    {"--tokenizer", kValue, kRefused, "the checkpoint's tokenizer.json is used"},
    {"--tokenizer-mode", kValue, kIgnored, "the checkpoint's tokenizer.json is used", "auto"},
    {"--skip-tokenizer-init", kSwitch, kRefused, "the server needs the tokenizer"},
    {"--revision", kValue, kIgnored, "models are local folders"},
    {"--tokenizer-revision", kValue, kIgnored, "models are local folders"},
    {"--code-revision", kValue, kIgnored, "models are local folders"},
    {"--download-dir", kValue, kIgnored, "models are local folders"},
    {"--hf-token", kValue, kIgnored, "models are local folders"},
    {"--hf-overrides", kValue, kRefused, "config.json is taken as it is"},
    {"--config", kValue, kRefused, "write the flags out"},
    {"--uds", kValue, kRefused, "only TCP is served"},
    {"--ssl-keyfile", kValue, kRefused, "put a TLS proxy in front"},
    {"--ssl-certfile", kValue, kRefused, "put a TLS proxy in front"},
    {"--ssl-ca-certs", kValue, kRefused, "put a TLS proxy in front"},
    {"--ssl-cert-reqs", kValue, kRefused, "put a TLS proxy in front", "0"},
    {"--ssl-ciphers", kValue, kRefused, "put a TLS proxy in front"},
    {"--enable-ssl-refresh", kSwitch, kRefused, "put a TLS proxy in front"},
    {"--allowed-methods", kValue, kIgnored, "GET, POST and OPTIONS are allowed"},
    {"--allowed-headers", kValue, kIgnored, "all headers are allowed"},
    {"--allow-credentials", kSwitch, kIgnored, "credentials of other origins are not used"},
    {"--root-path", kValue, kIgnored, "paths are not prefixed"},
    {"--middleware", kValues, kRefused, "there is no Python to load"},
    {"--enable-request-id-headers", kSwitch, kSilent, "X-Request-Id is always echoed"},
    {"--h11-max-incomplete-event-size", kValue, kIgnored, "headers end at 64 KiB"},
    {"--h11-max-header-count", kValue, kIgnored, "headers end at 256"},
    {"--uvicorn-log-level", kValue, kIgnored, "see --log-level"},
    {"--disable-access-log-for-endpoints", kValues, kIgnored, "see --disable-uvicorn-access-log"},
    {"--enable-log-requests", kSwitch, kIgnored, "prompts are not logged"},
    {"--enable-log-outputs", kSwitch, kIgnored, "answers are not logged"},
    {"--max-log-len", kValue, kIgnored, "prompts are not logged"},
    {"--trust-request-chat-template", kSwitch, kRefused, "the template is fixed at start"},
    {"--tool-parser-plugin", kValue, kRefused, "there is no Python to load"},
    {"--reasoning-parser-plugin", kValue, kRefused, "there is no Python to load"},
    {"--enable-force-include-usage", kSwitch, kIgnored, "ask with stream_options"},
    {"--enable-server-load-tracking", kSwitch, kIgnored, "see /metrics"},
    {"--enable-tokenizer-info-endpoint", kSwitch, kIgnored, "there is no such endpoint"},
    {"--enable-per-request-metrics", kSwitch, kIgnored, "see /metrics"},
    {"--fingerprint-mode", kValue, kIgnored, ""},
    {"--kv-offloading-size", kValue, kRefused, "the cache stays where the model runs"},
    {"--kv-offloading-backend", kValue, kRefused, "the cache stays where the model runs"},
    {"--swap-space", kValue, kIgnored, "preempted requests are computed again"},
    {"--cpu-offload-gb", kValue, kRefused, "weights stay where the model runs", "0"},
    {"--kv-events-config", kValue, kRefused, "cache events are not published"},
    {"--kv-transfer-config", kValue, kRefused, "the cache is not shared with other servers"},
    {"--enable-sleep-mode", kSwitch, kIgnored, "the weights stay loaded"},
    {"--otlp-traces-endpoint", kValue, kIgnored, "traces are not sent"},
    {"--show-hidden-metrics-for-version", kValue, kIgnored, ""},
    {"--compilation-config", kValue, kIgnored, "nothing is compiled at start"},
    {"--cuda-graph-sizes", kValues, kIgnored, "a card's graphs are recorded as they are needed"},
    {"--max-cudagraph-capture-size", kValue, kIgnored,
     "a card's graphs are recorded as they are needed"},
    {"--max-seq-len-to-capture", kValue, kIgnored,
     "a card's graphs are recorded as they are needed"},
    {"--enable-lora", kSwitch, kRefused, "adapters are not supported"},
    {"--lora-modules", kValues, kRefused, "adapters are not supported"},
    {"--task", kValue, kRefused, "the model generates text", "auto generate"},
    {"--runner", kValue, kRefused, "the model generates text", "auto generate"},
    {"--calculate-kv-scales", kSwitch, kIgnored, "FP8 records have scale 1"},
    {"--limit-mm-per-prompt", kValue, kIgnored, "the model reads text"},
    {"--ignore-patterns", kValue, kIgnored, "models are local folders"},
};

// Of "--no-name", the rule of the switch "--name".
const Rule* find_negated_rule(std::string_view name) {
  if (!name.starts_with("--no-")) return nullptr;
  const std::string positive = "--" + std::string(name.substr(5));
  const auto found = std::ranges::find_if(
      kRules, [&](const Rule& rule) { return rule.kind == kSwitch && rule.name == positive; });
  return found != std::end(kRules) ? found : nullptr;
}

const Rule* find_rule(std::string_view name) {
  const auto found =
      std::ranges::find_if(kRules, [&](const Rule& rule) { return rule.name == name; });
  if (found != std::end(kRules)) return found;
  // Dotted forms set one member of a JSON value: --speculative-config.method mtp.
  const size_t dot = name.find('.');
  return dot == std::string_view::npos ? nullptr : find_rule(name.substr(0, dot));
}

bool is_harmless(const Rule& rule, const std::string& value) {
  return (" " + std::string(rule.harmless) + " ").find(" " + value + " ") != std::string::npos;
}

// vLLM takes --max_model_len for --max-model-len.
std::string with_dashes(std::string name) {
  if (name.starts_with("--")) std::ranges::replace(name, '_', '-');
  return name;
}

void warn_ignored(const std::string& text, const Rule& rule, TranslatedArguments& out) {
  out.warnings.push_back(text + " is ignored" +
                         (rule.reason.empty() ? "" : ": " + std::string(rule.reason)));
}

void apply_rule(const Rule& rule, const std::string& name, const std::string& value,
                TranslatedArguments& out) {
  if (rule.treatment == kSilent || (rule.kind != kSwitch && is_harmless(rule, value))) return;
  std::string text = name + (value.empty() ? "" : " " + value);
  if (rule.treatment == kRefused) {
    text += ": not supported: " + std::string(rule.reason);
    if (!rule.harmless.empty()) text += " (accepted: " + std::string(rule.harmless) + ")";
    throw Error(text);
  }
  warn_ignored(text, rule, out);
}

}  // namespace

TranslatedArguments translate_vllm_flags(const std::vector<std::string>& arguments) {
  TranslatedArguments out;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    const size_t equals = argument.starts_with("--") ? argument.find('=') : std::string::npos;
    const std::string name = with_dashes(argument.substr(0, equals));
    const Rule* rule = argument.starts_with("-") ? find_rule(name) : nullptr;
    const Rule* negated = rule == nullptr ? find_negated_rule(name) : nullptr;
    if (negated != nullptr) {
      // What this program does not do is off; what it always does cannot be switched off.
      const bool is_always_on = negated->treatment == kSilent && !negated->reason.empty();
      if (is_always_on) warn_ignored(name, *negated, out);
    } else if (rule == nullptr) {
      const std::string rest = equals == std::string::npos ? "" : argument.substr(equals);
      // The model is a positional argument of ours.
      if (name == "--model" && !rest.empty()) {
        out.arguments.push_back(rest.substr(1));
      } else if (name != "--model") {
        out.arguments.push_back(name + rest);
      }
    }
    if (rule == nullptr) continue;
    std::string value;
    const auto next_is_value = [&] {
      return i + 1 < arguments.size() && !arguments[i + 1].starts_with("--");
    };
    if (equals != std::string::npos) {
      value = argument.substr(equals + 1);
    } else if (rule->kind != kSwitch) {
      if (!next_is_value()) throw Error(name + ": needs a value");
      value = arguments[++i];
      while (rule->kind == kValues && next_is_value()) value += " " + arguments[++i];
    }
    apply_rule(*rule, name, value, out);
  }
  return out;
}

}  // namespace nibble
