// Session: a runtime with the text side of its checkpoint: tokenizer and chat template.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "apps/runtime.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace nibble {

class Session {
 public:
  // Throws Error that names the file or flag. `chat_template`: a file or a template, empty for the
  // checkpoint's own.
  explicit Session(const ModelOptions& options, const std::string& chat_template = "",
                   std::function<void()> on_step = {});

  const std::filesystem::path folder;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;  // nullptr: the checkpoint has none
  std::unique_ptr<Runtime> runtime;

  Engine& engine() const { return *runtime->engine; }
};

}  // namespace nibble
