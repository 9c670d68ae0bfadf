// One safetensors file's bytes as named tensors.
//
//   | u64 header size, little-endian | JSON header | data |
//   header: {"name": {"dtype": "BF16", "shape": [r, c], "data_offsets": [begin, end]}, ...,
//            "__metadata__": {string: string}}     offsets count from the end of the header
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/tensor.h"

namespace nibble {

struct StoredTensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape{};   // empty for a scalar
  const uint8_t* data = nullptr;  // in the file's bytes and as long-lived; any alignment
  int64_t size_bytes = 0;

  int64_t num_elements() const;
};

// Reads and validates the header; never touches the data. `file` stands in messages. Throws Error
// that names the file, the tensor and what is wrong: a header over 100 MB or over the file, bad
// JSON, another structure than the one above, an unknown dtype, shape and bytes that disagree,
// more than 8 dimensions, offsets reversed or outside, overlaps, gaps, duplicate names.
std::map<std::string, StoredTensor> parse_safetensors(const std::string& file, const uint8_t* bytes,
                                                      size_t size);

// "BF16", as the header spells it.
const char* dtype_name(DType dtype);

}  // namespace nibble
