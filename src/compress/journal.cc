#include "compress/journal.h"

#include "base/error.h"

namespace nibble {
namespace {

constexpr char kFile[] = "progress.json";

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
}

void Journal::add_layer(nlohmann::json entry) {
  writer_.sync();
  layers_.push_back(std::move(entry));
  const nlohmann::json file = {{"settings", settings_}, {"layers", layers_}};
  writer_.write_file(kFile, file.dump(1) + "\n");
}

void Journal::remove() {
  std::filesystem::remove(writer_.partial_folder() / kFile);
}

}  // namespace nibble
