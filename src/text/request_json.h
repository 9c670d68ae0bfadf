// The JSON of a render request.
#pragma once

#include "text/chat_template.h"

namespace nibble {

// Recursive walks are safe after it. Throws ApiError 400: a part is nested more than 90 deep.
void check_depth(const RenderRequest& request);

}  // namespace nibble
