// ChatTemplate: messages, tools and options -> prompt text, by the checkpoint's own Jinja template.
// Rendering is bounded in time, memory and stack. Immutable; any thread.
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

namespace nibble {

struct RenderRequest {
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  nlohmann::ordered_json tools{};   // null, or an array of definitions
  nlohmann::ordered_json kwargs{};  // null, or an object of extra template variables
  bool add_generation_prompt = true;
};

class ChatTemplate {
 public:
  // chat_template.jinja, or `chat_template` of tokenizer_config.json (a string, or a named list),
  // with that file's bos/eos/pad/unk tokens. Throws Error that names the file and, for a syntax
  // error, the line. nullptr when the folder has no template.
  static std::unique_ptr<ChatTemplate> load(const std::filesystem::path& folder);
  // The text of --chat-template instead; `name` stands in messages.
  static std::unique_ptr<ChatTemplate> load(const std::filesystem::path& folder,
                                            const std::string& name, const std::string& text);
  ~ChatTemplate();

  // Throws ApiError 400: what the template raised, an undefined value used, a limit reached.
  std::string render(const RenderRequest& request) const;

 private:
  ChatTemplate();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
