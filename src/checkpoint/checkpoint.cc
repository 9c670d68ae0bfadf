#include "checkpoint/checkpoint.h"

#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "base/mmap_file.h"
#include "checkpoint/json_file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr std::string_view kSuffix = ".safetensors";

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// A name in the folder itself: an index must not lead out of it.
bool is_plain_name(const std::string& name) {
  return name.size() > kSuffix.size() && name.ends_with(kSuffix) &&
         name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
}

// Tensor name -> file name.
std::map<std::string, std::string> read_index(const fs::path& path) {
  const JsonFile index = JsonFile::load(path);
  const auto map = index.root().find("weight_map");
  if (map == index.root().end() || !map->is_object() || map->empty()) {
    index.fail("weight_map", "must be an object that maps tensor names to file names");
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || !is_plain_name(file.get_ref<const std::string&>())) {
      index.fail("weight_map", "names the file " + file.dump(-1, ' ', true) +
                                   "; it must be a *.safetensors file of the same folder");
    }
    files[tensor] = file.get<std::string>();
  }
  return files;
}

std::set<std::string> all_safetensors(const fs::path& folder) {
  std::set<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (is_plain_name(name)) names.insert(name);
  }
  if (error) throw Error(folder.string() + ": " + error.message());
  if (names.empty()) throw Error(folder.string() + ": no *.safetensors file in this folder");
  return names;
}

}  // namespace

Checkpoint Checkpoint::open(const fs::path& folder) {
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored)) {
    throw Error(folder.string() + (is_there(folder) ? ": not a folder" : ": no such folder") +
                "; a model is a folder with config.json, tokenizer.json and *.safetensors");
  }
  std::map<std::string, std::string> index;
  std::set<std::string> files;
  if (is_there(folder / kSingleFile)) {
    files = {kSingleFile};
  } else if (is_there(folder / kIndexFile)) {
    index = read_index(folder / kIndexFile);
    for (const auto& [tensor, file] : index) files.insert(file);
  } else {
    files = all_safetensors(folder);
  }

  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  std::map<std::string, std::string> file_of;
  auto mapped = std::make_shared<std::vector<std::unique_ptr<MmapFile>>>();
  for (const std::string& file : files) {
    const std::string path = (folder / file).string();
    mapped->push_back(std::make_unique<MmapFile>(path));
    for (auto& [name, tensor] :
         parse_safetensors(path, mapped->back()->data(), mapped->back()->size())) {
      const auto listed = index.find(name);
      if (listed != index.end() && listed->second != file) continue;
      const auto [at, added] = file_of.emplace(name, file);
      if (!added) {
        throw Error(path + ": tensor \"" + escape_control(name) + "\" is in " + at->second +
                    " too");
      }
      checkpoint.tensors_.emplace(name, std::move(tensor));
    }
  }
  for (const auto& [name, file] : index) {
    const auto at = file_of.find(name);
    if (at == file_of.end() || at->second != file) {
      throw Error((folder / kIndexFile).string() + ": tensor \"" + escape_control(name) +
                  "\" is not in " + file);
    }
  }
  checkpoint.mapping_ = std::move(mapped);
  return checkpoint;
}

Checkpoint Checkpoint::parse(const std::string& name, const uint8_t* bytes, size_t size) {
  Checkpoint checkpoint;
  checkpoint.tensors_ = parse_safetensors(name, bytes, size);
  return checkpoint;
}

const StoredTensor* Checkpoint::find(const std::string& name) const {
  const auto at = tensors_.find(name);
  return at == tensors_.end() ? nullptr : &at->second;
}

int64_t Checkpoint::size_bytes() const {
  int64_t total = 0;
  for (const auto& [name, tensor] : tensors_) total += tensor.size_bytes;
  return total;
}

}  // namespace nibble
