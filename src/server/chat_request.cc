#include "server/chat_request.h"

#include <algorithm>
#include <string_view>

#include "base/error.h"
#include "server/messages.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMaxOutput = INT32_MAX;
constexpr size_t kMaxMessages = 65536;
constexpr size_t kMaxTools = 4096;

// What the server gives the template itself: a client must not replace it.
constexpr std::string_view kReservedKwargs[] = {"messages",
                                                "tools",
                                                "add_generation_prompt",
                                                "continue_final_message",
                                                "chat_template",
                                                "conversation",
                                                "tokenize",
                                                "bos_token",
                                                "eos_token",
                                                "pad_token",
                                                "unk_token",
                                                "raise_exception",
                                                "strftime_now",
                                                "namespace",
                                                "range"};

constexpr std::string_view kEfforts[] = {"none", "minimal", "low", "medium",
                                         "high", "xhigh",   "max"};

// Unsupported ways to prepare the prompt.
void refuse_prompt_options(const Fields& fields) {
  if (fields.boolean("continue_final_message").value_or(false)) {
    fields.fail("continue_final_message", "`continue_final_message` is not supported.");
  }
  if (fields.boolean("echo").value_or(false)) {
    fields.fail("echo", "`echo` is not supported for chats; /v1/completions has it.");
  }
  if (fields.has("chat_template")) {
    fields.fail("chat_template",
                "`chat_template` cannot be set by a request: the server's "
                "--chat-template decides.");
  }
}

void add_kwargs(const Json& from, Json& kwargs) {
  for (const auto& [key, value] : from.items()) kwargs[key] = value;
}

Json read_kwargs(const Fields& fields, const Service& service) {
  Json kwargs = Json::object();
  if (service.options.default_template_kwargs.is_object()) {
    add_kwargs(service.options.default_template_kwargs, kwargs);
  }
  if (const auto effort = fields.string("reasoning_effort", 32)) {
    if (std::find(std::begin(kEfforts), std::end(kEfforts), *effort) == std::end(kEfforts)) {
      fields.fail_type("reasoning_effort", "none, minimal, low, medium, high, xhigh or max");
    }
    kwargs["reasoning_effort"] = *effort;
    kwargs["enable_thinking"] = *effort != "none";
  }
  if (const Json* documents = fields.array("documents", kMaxMessages)) {
    kwargs["documents"] = *documents;
  }
  if (const Json* own = fields.object("chat_template_kwargs")) {
    for (const std::string_view name : kReservedKwargs) {
      if (!own->contains(name)) continue;
      fields.fail("chat_template_kwargs", "`chat_template_kwargs` must not set `" +
                                              std::string(name) + "`, which the server sets.");
    }
    add_kwargs(*own, kwargs);
  }
  return kwargs;
}

// Whether the model may call tools.
bool read_tool_choice(const Fields& fields, bool has_tools) {
  const Json* choice = fields.find("tool_choice");
  if (!choice) return has_tools;
  if (choice->is_string()) {
    const auto& name = choice->get_ref<const std::string&>();
    if (name == "none") return false;
    if (name != "auto" && name != "required") {
      fields.fail_type("tool_choice", "none, auto, required or a named function");
    }
    if (!has_tools) fields.fail("tool_choice", "`tool_choice` needs `tools`.");
    if (name == "auto") return true;
  } else {
    if (!choice->is_object()) {
      fields.fail_type("tool_choice", "none, auto, required or a named function");
    }
    const Fields inner(*choice, fields.path("tool_choice"));
    const Json* function = inner.object("function");
    if (!function) inner.fail_type("function", "an object with a name");
    const Fields named(*function, inner.path("function"));
    const auto name = named.string("name", 1024);
    if (!name) named.fail_type("name", "a string");
    if (!has_tools) fields.fail("tool_choice", "`tool_choice` needs `tools`.");
  }
  fields.fail("tool_choice",
              "`tool_choice` required or naming a function is not supported: this build has no "
              "grammar engine to force a call with. Use auto or none.");
}

void read_logprobs(const Fields& fields, const Service& service, SamplingParams& sampling) {
  const bool wanted = fields.boolean("logprobs").value_or(false);
  const auto top = fields.integer("top_logprobs", 0, service.engine_options.max_logprobs);
  if (top.value_or(0) > 0 && !wanted) {
    fields.fail("top_logprobs", "`top_logprobs` needs `logprobs` to be true.");
  }
  if (wanted) sampling.logprobs = int(top.value_or(0));
}

// Of all strings in it, at any depth.
size_t string_bytes(const Json& value) {
  if (value.is_string()) return value.get_ref<const std::string&>().size();
  size_t bytes = 0;
  if (value.is_structured()) {
    for (const Json& item : value) bytes += string_bytes(item);
  }
  return bytes;
}

}  // namespace

RenderRequest read_render(const Fields& fields, const Service& service) {
  if (!service.chat_template) {
    throw ApiError(400,
                   "This model has no chat template; use /v1/completions, or give the server "
                   "one with --chat-template.");
  }
  const Json* messages = fields.array("messages", kMaxMessages);
  if (!messages || messages->empty()) fields.fail_type("messages", "a non-empty array");
  RenderRequest render;
  render.messages = normalize_messages(*messages);
  if (const Json* tools = fields.array("tools", kMaxTools)) {
    if (tools->empty()) fields.fail("tools", "`tools` must not be empty; leave it out instead.");
    check_tools(*tools);
    render.tools = *tools;
  }
  refuse_prompt_options(fields);
  render.kwargs = read_kwargs(fields, service);
  render.add_generation_prompt = fields.boolean("add_generation_prompt").value_or(true);
  return render;
}

ChatRequest read_chat_request(const Json& body, const Service& service) {
  const Fields fields(body);
  ChatRequest request;
  request.generation = read_generation(fields, service);
  auto asked = fields.integer("max_completion_tokens", 1, kMaxOutput);
  if (!asked) asked = fields.integer("max_tokens", 1, kMaxOutput);
  if (asked) request.generation.max_tokens = int(*asked);
  read_logprobs(fields, service, request.generation.sampling);
  if (fields.integer("thinking_token_budget", -1, kMaxOutput).value_or(-1) != -1) {
    fields.fail("thinking_token_budget", "`thinking_token_budget` is not supported.");
  }
  request.parallel_tool_calls = fields.boolean("parallel_tool_calls").value_or(true);
  request.include_reasoning = fields.boolean("include_reasoning").value_or(true);
  request.render = read_render(fields, service);
  if (read_tool_choice(fields, !request.render.tools.is_null())) {
    request.tools = request.render.tools;
  } else if (service.options.exclude_tools_when_tool_choice_none) {
    request.render.tools = nullptr;
  }
  return request;
}

Prompt render_chat(const RenderRequest& render, const GenerationRequest& generation,
                   const Service& service) {
  size_t bytes = string_bytes(render.tools);
  for (const Json& message : render.messages) {
    bytes += message["content"].get_ref<const std::string&>().size();
  }
  check_prompt_bytes(bytes, generation, service);
  return render_prompt(*service.chat_template, service.tokenizer, render,
                       service.options.parse_special_tokens_in_messages);
}

ParserOptions parser_options(const ChatRequest& request, const Prompt& prompt,
                             const Service& service) {
  return {.reasoning = service.options.reasoning_parser,
          .tool_calls = service.options.tool_call_parser && !request.tools.is_null(),
          .starts_in_reasoning = starts_in_reasoning(prompt.text),
          .tags_in_text = false,
          .tools = request.tools};
}

}  // namespace nibble
