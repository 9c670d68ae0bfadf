#include "compress/source_folder.h"

#include <fstream>
#include <sstream>

#include "base/error.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kCopiedFiles[] = {"generation_config.json",
                                        "tokenizer.json",
                                        "tokenizer_config.json",
                                        "chat_template.jinja",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "LICENSE",
                                        "LICENSE.txt",
                                        "NOTICE",
                                        "NOTICE.md"};

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  if (!file) throw Error(path.string() + ": cannot be read");
  return bytes.str();
}

}  // namespace

void refuse_quantized(const fs::path& folder, const GlmConfig& config,
                      const Checkpoint& checkpoint) {
  std::string what = config.quantization.empty() ? "" : "its config.json has quantization_config";
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    const bool plain = tensor.dtype == DType::kBF16 || tensor.dtype == DType::kF32;
    if (what.empty() && !plain) what = name + " is " + dtype_name(tensor.dtype);
  }
  if (what.empty()) return;
  throw Error(folder.string() + ": is quantized already (" + what +
              "); start from the BF16 checkpoint");
}

nlohmann::ordered_json read_config(const fs::path& folder) {
  return nlohmann::ordered_json::parse(read_file(folder / "config.json"));
}

void copy_files(const fs::path& folder, CheckpointWriter& writer) {
  for (const char* name : kCopiedFiles) {
    if (fs::is_regular_file(folder / name)) writer.write_file(name, read_file(folder / name));
  }
}

}  // namespace nibble
