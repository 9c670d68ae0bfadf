// Checkpoint: a folder of safetensors files as named tensors, memory-mapped.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "checkpoint/safetensors.h"

namespace nibble {

class Checkpoint {
 public:
  // Opens model.safetensors, or the files of model.safetensors.index.json, or, without either, all
  // *.safetensors of the folder. Of a tensor in several files the index says which one counts.
  // Reads and validates headers only. Throws Error that names the file and what is wrong: all that
  // parse_safetensors() refuses, no files, a tensor in two files without an index that lists it, an
  // index that names a missing file or tensor or a file outside the folder.
  static Checkpoint open(const std::filesystem::path& folder);
  // The same for one file's bytes in memory; `name` stands in messages. The bytes must outlive it.
  static Checkpoint parse(const std::string& name, const uint8_t* bytes, size_t size);

  const std::filesystem::path& folder() const { return folder_; }
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  const StoredTensor* find(const std::string& name) const;
  int64_t size_bytes() const;  // of all tensors
  // Keeps the files mapped; shared with every Weight that points into them.
  std::shared_ptr<const void> mapping() const { return mapping_; }

 private:
  std::filesystem::path folder_;
  std::map<std::string, StoredTensor> tensors_;
  std::shared_ptr<const void> mapping_;
};

}  // namespace nibble
