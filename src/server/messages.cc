#include "server/messages.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "base/error.h"
#include "server/fields.h"
#include "server/json_body.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxTextBytes = 32 << 20;
constexpr size_t kMaxNameBytes = 1024;
constexpr size_t kMaxParts = 65536;
constexpr size_t kMaxToolCalls = 1024;

constexpr std::string_view kRoles[] = {"system",    "developer", "user",
                                       "assistant", "tool",      "function"};
constexpr std::string_view kTextParts[] = {"text", "input_text", "output_text", "refusal",
                                           "thinking"};
constexpr std::string_view kMediaParts[] = {
    "image_url",   "input_image", "image_pil", "image_embeds", "image",      "audio_url",
    "input_audio", "audio",       "video_url", "video",        "input_file", "file"};

template <typename List>
bool contains(const List& list, std::string_view item) {
  return std::find(std::begin(list), std::end(list), item) != std::end(list);
}

std::string indexed(std::string_view path, size_t index) {
  return std::string(path) + "[" + std::to_string(index) + "]";
}

const Json& require_object(const Json& value, const std::string& path) {
  if (!value.is_object()) {
    throw ApiError(400, "`" + path + "` must be an object, not " + value.type_name() + ".", path);
  }
  return value;
}

std::string part_text(const Json& part, const std::string& path) {
  if (part.is_string()) return part.get<std::string>();
  const Fields fields(require_object(part, path), path);
  const std::string type = fields.string("type", kMaxNameBytes).value_or("");
  if (contains(kMediaParts, type)) {
    fields.fail("type", "`" + path + "` is of type " + type + ": this model reads text only.");
  }
  if (!contains(kTextParts, type)) {
    fields.fail_type("type", "text: this model reads nothing else");
  }
  const std::string key = type == "refusal" || type == "thinking" ? type : "text";
  const auto text = fields.string(key, kMaxTextBytes);
  if (!text) fields.fail_type(key, "a string");
  return *text;
}

std::string content_text(const Fields& message) {
  const Json* content = message.find("content");
  if (!content) return "";
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array()) message.fail_type("content", "a string, null or an array of parts");
  const Json* parts = message.array("content", kMaxParts);
  std::string text;
  for (size_t i = 0; i < parts->size(); ++i) {
    text += part_text((*parts)[i], indexed(message.path("content"), i));
  }
  return text;
}

Json call_arguments(const Fields& function) {
  const Json* arguments = function.find("arguments");
  if (!arguments) return Json::object();
  if (arguments->is_object()) return *arguments;
  if (!arguments->is_string()) function.fail_type("arguments", "a string of JSON or an object");
  const auto& text = arguments->get_ref<const std::string&>();
  if (text.find_first_not_of(" \t\r\n") == std::string::npos) return Json::object();
  Json parsed = parse_json(text, function.path("arguments"));
  if (!parsed.is_object()) {
    function.fail("arguments", "`" + function.path("arguments") +
                                   "` must hold a JSON object, not " + parsed.type_name() + ".");
  }
  return parsed;
}

Json normalize_call(const Json& call, const std::string& path) {
  const Fields fields(require_object(call, path), path);
  const Json* function = fields.object("function");
  if (!function) fields.fail_type("function", "an object");
  const Fields inner(*function, fields.path("function"));
  const auto name = inner.string("name", kMaxNameBytes);
  if (!name || name->empty()) inner.fail_type("name", "a name");
  Json result{{"type", "function"}, {"function", {{"name", *name}}}};
  result["function"]["arguments"] = call_arguments(inner);
  if (const auto id = fields.string("id", kMaxNameBytes)) result["id"] = *id;
  return result;
}

Json normalize_message(const Json& message, const std::string& path) {
  const Fields fields(require_object(message, path), path);
  std::string role = fields.string("role", kMaxNameBytes).value_or("");
  if (!contains(kRoles, role)) {
    fields.fail_type("role", "system, developer, user, assistant, tool or function");
  }
  if (role == "developer") role = "system";
  if (role == "function") role = "tool";
  Json result{{"role", role}, {"content", content_text(fields)}};
  if (const auto name = fields.string("name", kMaxNameBytes)) result["name"] = *name;
  if (const auto id = fields.string("tool_call_id", kMaxNameBytes)) result["tool_call_id"] = *id;
  auto reasoning = fields.string("reasoning", kMaxTextBytes);
  if (!reasoning) reasoning = fields.string("reasoning_content", kMaxTextBytes);
  if (reasoning) result["reasoning_content"] = *reasoning;
  const Json* calls = fields.array("tool_calls", kMaxToolCalls);
  if (calls && !calls->empty()) {
    Json normalized = Json::array();
    for (size_t i = 0; i < calls->size(); ++i) {
      normalized.push_back(normalize_call((*calls)[i], indexed(fields.path("tool_calls"), i)));
    }
    result["tool_calls"] = std::move(normalized);
  }
  return result;
}

}  // namespace

Json normalize_messages(const Json& messages) {
  Json result = Json::array();
  for (size_t i = 0; i < messages.size(); ++i) {
    result.push_back(normalize_message(messages[i], indexed("messages", i)));
  }
  return result;
}

void check_tools(const Json& tools) {
  for (size_t i = 0; i < tools.size(); ++i) {
    const std::string path = indexed("tools", i);
    const Fields fields(require_object(tools[i], path), path);
    if (fields.string("type", kMaxNameBytes).value_or("function") != "function") {
      fields.fail_type("type", "function");
    }
    const Json* function = fields.object("function");
    if (!function) fields.fail_type("function", "an object");
    const Fields inner(*function, fields.path("function"));
    const auto name = inner.string("name", kMaxNameBytes);
    if (!name || name->empty()) inner.fail_type("name", "a name");
    inner.string("description", kMaxTextBytes);
    inner.object("parameters");
  }
}

}  // namespace nibble
