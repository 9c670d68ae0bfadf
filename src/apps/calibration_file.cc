#include "apps/calibration_file.h"

#include <fstream>

#include "apps/model_files.h"
#include "base/error.h"
#include "base/log.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int kShownLines = 5;  // that are left out, each with a warning

std::vector<bool> before_reply(const std::vector<int32_t>& tokens, const Tokenizer& tokenizer) {
  std::vector<bool> marks;
  bool in_reply = false;
  for (const int32_t token : tokens) {
    if (token == tokenizer.added_token("<|assistant|>")) in_reply = true;
    for (const char* end : {"<|user|>", "<|observation|>", "<|system|>", "<|endoftext|>"}) {
      if (token == tokenizer.added_token(end)) in_reply = false;
    }
    marks.push_back(in_reply);
  }
  return marks;
}

CalibrationSample sample_of(const std::string& line, const ChatTemplate& chat_template,
                            const Tokenizer& tokenizer, int max_length) {
  nlohmann::ordered_json json;
  try {
    json = nlohmann::ordered_json::parse(line);
  } catch (const nlohmann::json::exception& e) {
    throw Error(std::string("not JSON: ") + e.what());
  }
  if (!json.is_object() || !json.contains("messages") || !json["messages"].is_array() ||
      json["messages"].empty()) {
    throw Error("has no list \"messages\"");
  }
  const RenderRequest request{.messages = json["messages"],
                              .tools = json.value("tools", nlohmann::ordered_json()),
                              .add_generation_prompt = false};
  CalibrationSample sample{.tokens = tokenizer.encode(chat_template.render(request))};
  if (sample.tokens.empty()) throw Error("has no tokens");
  if (int(sample.tokens.size()) > max_length) sample.tokens.resize(size_t(max_length));
  sample.before_reply = before_reply(sample.tokens, tokenizer);
  return sample;
}

fs::path folder_of_default() {
  try {
    return find_model("");
  } catch (const Error&) {
    throw Error(
        "--calibration: name a file; the default is the pocket model's, which is not "
        "installed beside this program");
  }
}

std::string file_path(const fs::path& folder, const std::string& named) {
  if (!named.empty()) return named;
  const fs::path pocket = folder_of_default();
  std::error_code ignored;
  if (!fs::equivalent(pocket, folder, ignored)) {
    log_warning("without --calibration the pocket model's text is used, which is poor for others");
  }
  return (pocket / "eval/calibration.jsonl").string();
}

}  // namespace

std::vector<CalibrationSample> load_calibration(const fs::path& folder,
                                                const CalibrationFlags& flags) {
  const std::string path = file_path(folder, flags.file);
  const auto tokenizer = Tokenizer::load(folder);
  const auto chat_template = ChatTemplate::load(folder);
  if (chat_template == nullptr) {
    throw Error(folder.string() + ": has no chat template, which calibration text needs");
  }
  std::ifstream lines(path);
  if (!lines || fs::is_directory(path)) throw Error("--calibration " + path + ": cannot be read");
  std::vector<CalibrationSample> samples;
  std::string line;
  int left_out = 0;
  for (int number = 1; std::getline(lines, line) && int(samples.size()) < flags.samples; ++number) {
    if (line.empty()) continue;
    try {
      samples.push_back(sample_of(line, *chat_template, *tokenizer, flags.max_length));
    } catch (const std::exception& e) {
      const std::string what = path + ":" + std::to_string(number) + ": " + e.what();
      if (flags.strict) throw Error(what);
      if (++left_out <= kShownLines) log_warning(what + "; left out");
    }
  }
  if (left_out > kShownLines) {
    log_warning(path + ": " + std::to_string(left_out) + " lines were left out in all");
  }
  if (samples.empty()) throw Error("--calibration " + path + ": has no usable line");
  if (int(samples.size()) < flags.samples) {
    log_warning(path + ": has " + std::to_string(samples.size()) +
                " samples, fewer than --samples " + std::to_string(flags.samples));
  }
  return samples;
}

}  // namespace nibble
