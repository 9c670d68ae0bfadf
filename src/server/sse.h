// Server-sent events, as OpenAI's clients read them.
#pragma once

#include <string>
#include <string_view>

namespace nibble {

inline constexpr std::string_view kSseContentType = "text/event-stream; charset=utf-8";
inline constexpr std::string_view kSseComment = ": keep-alive\n\n";  // clients skip it
inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";

// `json` has no line break.
void append_sse_event(std::string_view json, std::string& out);

}  // namespace nibble
