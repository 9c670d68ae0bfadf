// Input: a template, and behind a zero byte, when there is one, the JSON of its variables.
#include <cstdint>
#include <string>

#include "text/jinja.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  const size_t end = input.find('\0');
  const std::string context =
      end != std::string::npos
          ? input.substr(end + 1)
          : R"({"messages": [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "é",
               "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1.5, "b": null}}}]}],
               "tools": [{"type": "function", "x": [true, -1]}], "add_generation_prompt": true})";
  try {
    nibble::Jinja(input.substr(0, end)).render(context, 1772874302);
  } catch (const nibble::JinjaError&) {
  }
  return 0;
}
