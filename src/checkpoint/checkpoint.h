// Checkpoint: a folder of safetensors files as named tensors, memory-mapped.
//
//   safetensors: | u64 header size, little-endian | JSON header | data |
//   header: {"name": {"dtype": "BF16", "shape": [r, c], "data_offsets": [begin, end]}, ...,
//            "__metadata__": {string: string}}     offsets count from the end of the header
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/tensor.h"

namespace nibble {

struct StoredTensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape{};
  const uint8_t* data = nullptr;  // mapped; valid while the Checkpoint (or `mapping()`) lives
  int64_t size_bytes = 0;

  int64_t num_elements() const;
};

class Checkpoint {
 public:
  // Opens model.safetensors, or the files of model.safetensors.index.json, or, without either, all
  // *.safetensors of the folder. Reads and validates headers only. Throws Error that names the file
  // and what is wrong: header over 100 MB or over the file, bad JSON, unknown dtype, shape and
  // bytes that disagree, overlaps, gaps, offsets outside, duplicate names, an index that names a
  // missing file or tensor.
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
  void add_file(const std::string& name, const uint8_t* bytes, size_t size);

  std::filesystem::path folder_;
  std::map<std::string, StoredTensor> tensors_;
  std::shared_ptr<const void> mapping_;
};

}  // namespace nibble
