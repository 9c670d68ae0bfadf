#include "text/request_json.h"

#include "base/error.h"

namespace nibble {
namespace {

constexpr int kMaxDepth = 90;

void check_depth(const nlohmann::ordered_json& value, int depth, const std::string& param) {
  if (depth > kMaxDepth) {
    throw ApiError(
        400,
        param + " is nested too deep: at most " + std::to_string(kMaxDepth) + " levels are allowed",
        param);
  }
  for (const auto& child : value) {
    if (child.is_structured()) check_depth(child, depth + 1, param);
  }
}

}  // namespace

void check_depth(const RenderRequest& request) {
  check_depth(request.messages, 1, "messages");
  check_depth(request.tools, 1, "tools");
  check_depth(request.kwargs, 1, "chat_template_kwargs");
}

}  // namespace nibble
