// The bridge's errors, gathered on the C++ side.
#pragma once

#include <string>

#include "text/bridge/bridge.h"

namespace nibble {

inline void append_text(void* target, const char* text, size_t size_bytes) {
  static_cast<std::string*>(target)->append(text, size_bytes);
}

// Pass `raw` to a call of the bridge; when the call fails, `message` says why. Stays in place.
struct BridgeError {
  BridgeError() : raw{.kind = kNibbleOk, .line = 0, .sink = append_text, .target = &message} {}
  BridgeError(const BridgeError&) = delete;
  BridgeError& operator=(const BridgeError&) = delete;

  std::string message;
  NibbleError raw;
};

}  // namespace nibble
