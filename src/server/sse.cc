#include "server/sse.h"

namespace nibble {

void append_sse_event(std::string_view json, std::string& out) {
  out += "data: ";
  out += json;
  out += "\n\n";
}

}  // namespace nibble
