#include "compress/journal.h"

#include <cstring>
#include <fstream>

#include "base/error.h"

namespace nibble {
namespace {

constexpr char kFile[] = "progress.json";
constexpr char kTokenWeights[] = "token_weights.f32";  // one value behind the other
constexpr char kCount[] = "token_weights";             // how many, in the first file

std::vector<float> read_floats(const std::filesystem::path& path, size_t count) {
  std::vector<float> values(count);
  std::ifstream file(path, std::ios::binary);
  const auto bytes = std::streamsize(count * sizeof(float));
  file.read(reinterpret_cast<char*>(values.data()), bytes);
  if (file.gcount() != bytes || file.get() != EOF) {
    throw Error(path.string() + ": must hold " + std::to_string(count) + " numbers; delete " +
                path.parent_path().string() + " to start afresh");
  }
  return values;
}

}  // namespace

bool Journal::is_in(const std::filesystem::path& partial_folder) {
  std::error_code ignored;
  return std::filesystem::exists(partial_folder / kFile, ignored);
}

Journal::Journal(CheckpointWriter& writer, nlohmann::json settings, bool resume)
    : writer_(writer), settings_(std::move(settings)) {
  const std::filesystem::path path = writer_.partial_folder() / kFile;
  if (!resume || !std::filesystem::exists(path)) return;
  const JsonFile file = JsonFile::load(path);
  if (file.root().value("settings", nlohmann::json()) != settings_) {
    throw Error(path.string() + ": --resume needs the model and options of the run that was " +
                "stopped; delete " + writer_.partial_folder().string() + " to start afresh");
  }
  const auto layers = file.root().find("layers");
  if (layers == file.root().end() || !layers->is_array()) file.fail("layers", "must be a list");
  layers_.assign(layers->begin(), layers->end());
  const auto count = file.root().find(kCount);
  if (count == file.root().end()) return;
  if (!count->is_number_unsigned()) file.fail(kCount, "must be a number of tokens");
  token_weights_ = read_floats(writer_.partial_folder() / kTokenWeights, count->get<size_t>());
}

void Journal::keep_token_weights(std::vector<float> weights) {
  token_weights_ = std::move(weights);
  std::string bytes(token_weights_.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), token_weights_.data(), bytes.size());
  writer_.write_file(kTokenWeights, bytes);
  write();
}

void Journal::add_layer(nlohmann::json entry) {
  layers_.push_back(std::move(entry));
  write();
}

void Journal::write() {
  writer_.sync();
  nlohmann::json file = {{"settings", settings_}, {"layers", layers_}};
  if (!token_weights_.empty()) file[kCount] = token_weights_.size();
  writer_.write_file(kFile, file.dump(1) + "\n");
}

void Journal::remove() {
  std::filesystem::remove(writer_.partial_folder() / kFile);
  std::filesystem::remove(writer_.partial_folder() / kTokenWeights);
}

}  // namespace nibble
