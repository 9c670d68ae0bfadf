#include "apps/session.h"

#include <fstream>
#include <iterator>

#include "apps/model_files.h"
#include "base/error.h"

namespace nibble {
namespace {

std::string read_text_file(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw Error(path + ": cannot be read");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::unique_ptr<ChatTemplate> load_template(const std::filesystem::path& folder,
                                            const std::string& given) {
  if (given.empty()) return ChatTemplate::load(folder);
  const bool is_template = given.find('{') != std::string::npos;
  if (is_template) return ChatTemplate::load(folder, "--chat-template", given);
  return ChatTemplate::load(folder, given, read_text_file(given));
}

}  // namespace

Session::Session(const ModelOptions& options, const std::string& template_text,
                 std::function<void()> on_step)
    : folder(find_model(options.model)),
      tokenizer(Tokenizer::load(folder)),
      chat_template(load_template(folder, template_text)) {
  runtime = std::make_unique<Runtime>(folder, options, std::move(on_step));
  if (tokenizer->vocab_size() > runtime->config.vocab) {
    throw Error(
        (folder / "tokenizer.json").string() + ": has " + std::to_string(tokenizer->vocab_size()) +
        " tokens, but config.json says vocab_size " + std::to_string(runtime->config.vocab));
  }
}

}  // namespace nibble
