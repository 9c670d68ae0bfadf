// Chat messages and tools, from the client's form to the one that templates expect.
#pragma once

#include <nlohmann/json.hpp>

namespace nibble {

// Checks `messages` (the request's, an array) and returns them with
//   content      text parts joined, null as ""
//   tool_calls   arguments as objects ("" as {})
//   reasoning    under reasoning_content, whichever name it came by
//   role         developer as system, function as tool
// Throws ApiError 400 with the field's path, such as messages[3].content[0].type.
nlohmann::ordered_json normalize_messages(const nlohmann::ordered_json& messages);

// Throws ApiError 400 unless `tools` (an array) holds function definitions.
void check_tools(const nlohmann::ordered_json& tools);

}  // namespace nibble
