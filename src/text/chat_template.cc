#include "text/chat_template.h"

#include <ctime>
#include <optional>

#include "base/error.h"
#include "base/mmap_file.h"
#include "text/jinja.h"
#include "text/request_json.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

struct Source {
  std::string name;  // of the file, for messages
  std::string text;
};

std::string read_file(const std::filesystem::path& path) {
  const MmapFile file(path);
  return {reinterpret_cast<const char*>(file.data()), file.size()};
}

Json read_tokenizer_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer_config.json";
  if (!std::filesystem::exists(path)) return Json::object();
  try {
    Json config = Json::parse(read_file(path));
    if (config.is_object()) return config;
  } catch (const Json::parse_error& error) {
    throw Error(path.string() + " is not JSON: " + error.what());
  }
  throw Error(path.string() + " has to be a JSON object");
}

// {"bos_token": "<s>"} or {"bos_token": {"content": "<s>", ...}}
Json special_tokens(const Json& config) {
  Json tokens = Json::object();
  for (const char* name : {"bos_token", "eos_token", "pad_token", "unk_token"}) {
    const auto found = config.find(name);
    if (found == config.end()) continue;
    if (found->is_string()) tokens[name] = *found;
    if (found->is_object() && found->contains("content") && found->at("content").is_string()) {
      tokens[name] = found->at("content");
    }
  }
  return tokens;
}

// `chat_template` of tokenizer_config.json: a string, or [{"name": "default", "template": "..."}].
std::optional<Source> template_in_config(const std::filesystem::path& folder, const Json& config) {
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) return std::nullopt;
  const std::string name = (folder / "tokenizer_config.json").string() + ": chat_template";
  if (found->is_string()) return Source{.name = name, .text = found->get<std::string>()};
  if (found->is_array()) {
    for (const Json& entry : *found) {
      if (entry.is_object() && entry.value("name", Json()) == "default" &&
          entry.value("template", Json()).is_string()) {
        return Source{.name = name + " 'default'", .text = entry.at("template")};
      }
    }
  }
  throw Error(name + " has to be a string or a list with an entry named 'default'");
}

int64_t local_wall_clock_s() {
  const std::time_t now = std::time(nullptr);
  std::tm fields{};
  localtime_r(&now, &fields);
  return static_cast<int64_t>(now) + fields.tm_gmtoff;
}

[[noreturn]] void throw_api_error(const JinjaError& error) {
  if (error.kind == JinjaError::Kind::kRaised) throw ApiError(400, error.what(), "messages");
  std::string message = "The chat template cannot render this conversation: ";
  message += error.what();
  if (error.line > 0) message += " (line " + std::to_string(error.line) + " of the template)";
  throw ApiError(400, message, "messages");
}

}  // namespace

struct ChatTemplate::Impl {
  std::unique_ptr<Jinja> jinja;
  Json special_tokens = Json::object();

  void compile(const Source& source) {
    try {
      jinja = std::make_unique<Jinja>(source.text);
    } catch (const JinjaError& error) {
      std::string place = source.name;
      if (error.line > 0) place += ":" + std::to_string(error.line);
      throw Error(place + ": the chat template is broken: " + error.what());
    }
  }
};

ChatTemplate::ChatTemplate() : impl_(std::make_unique<Impl>()) {}
ChatTemplate::~ChatTemplate() = default;

std::unique_ptr<ChatTemplate> ChatTemplate::load(const std::filesystem::path& folder) {
  const Json config = read_tokenizer_config(folder);
  const std::filesystem::path path = folder / "chat_template.jinja";
  std::optional<Source> source;
  if (std::filesystem::exists(path)) {
    source = Source{.name = path.string(), .text = read_file(path)};
  } else {
    source = template_in_config(folder, config);
  }
  if (!source) return nullptr;
  std::unique_ptr<ChatTemplate> chat_template(new ChatTemplate());
  chat_template->impl_->special_tokens = special_tokens(config);
  chat_template->impl_->compile(*source);
  return chat_template;
}

std::unique_ptr<ChatTemplate> ChatTemplate::load(const std::filesystem::path& folder,
                                                 const std::string& name, const std::string& text) {
  std::unique_ptr<ChatTemplate> chat_template(new ChatTemplate());
  chat_template->impl_->special_tokens = special_tokens(read_tokenizer_config(folder));
  chat_template->impl_->compile({.name = name, .text = text});
  return chat_template;
}

std::string ChatTemplate::render(const RenderRequest& request) const {
  check_depth(request);
  Json context = impl_->special_tokens;
  context["documents"] = nullptr;
  if (!request.kwargs.is_null()) {
    if (!request.kwargs.is_object()) {
      throw ApiError(400, "chat_template_kwargs has to be an object", "chat_template_kwargs");
    }
    context.update(request.kwargs);
  }
  for (const char* name : {"messages", "tools", "add_generation_prompt"}) {
    if (context.contains(name)) {
      const std::string param = std::string("chat_template_kwargs.") + name;
      throw ApiError(400, param + " is not allowed: the request has a field for it", param);
    }
  }
  context["messages"] = request.messages;
  context["tools"] = request.tools;
  context["add_generation_prompt"] = request.add_generation_prompt;
  try {
    return impl_->jinja->render(context.dump(-1, ' ', false, Json::error_handler_t::replace),
                                local_wall_clock_s());
  } catch (const JinjaError& error) {
    throw_api_error(error);
  }
}

}  // namespace nibble
