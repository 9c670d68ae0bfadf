// Jinja: one compiled template -> text, as jinja2 renders it with transformers' settings. Bounded
// in time, memory and stack. Immutable; any thread. ChatTemplate stands on it.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

namespace nibble {

class JinjaError : public std::runtime_error {
 public:
  enum class Kind : uint8_t {
    kSyntax,     // does not compile
    kRaised,     // raise_exception
    kUndefined,  // an undefined value used
    kSecurity,   // refused by the sandbox
    kRuntime,    // anything else, a limit reached among it
  };
  // `line` of the template, or 0.
  JinjaError(Kind kind, int line, const std::string& message)
      : std::runtime_error(message), kind(kind), line(line) {}

  Kind kind;
  int line;
};

struct JinjaOptions {
  bool trim_blocks = true;
  bool lstrip_blocks = true;
};

class Jinja {
 public:
  // Throws JinjaError kSyntax.
  explicit Jinja(const std::string& source, const JinjaOptions& options = {});
  ~Jinja();

  // `context_json`: an object of variables, in UTF-8, nested at most 100 deep. `wall_clock_s`: what
  // strftime_now reads, local time as seconds since 1970 began. Throws JinjaError.
  std::string render(const std::string& context_json, int64_t wall_clock_s) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
