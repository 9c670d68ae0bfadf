// Log lines for people, on stderr: "12:34:56.789 info  text". Control characters of the text are
// escaped, so that what a client sent cannot forge a line.
#pragma once

#include <string>
#include <string_view>

namespace nibble {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

// Colours only where stderr is a terminal. Any thread.
void set_log_level(LogLevel level);
void log(LogLevel level, std::string_view text);

inline void log_debug(std::string_view text) {
  log(LogLevel::kDebug, text);
}
inline void log_info(std::string_view text) {
  log(LogLevel::kInfo, text);
}
inline void log_warning(std::string_view text) {
  log(LogLevel::kWarning, text);
}
inline void log_error(std::string_view text) {
  log(LogLevel::kError, text);
}

// Control characters as \n, \t, \x1b ..., broken UTF-8 repaired; everything else as it is.
std::string escape_control(std::string_view text);

}  // namespace nibble
