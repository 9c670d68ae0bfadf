// Any bytes as a safetensors file, and as the JSON header of one with 16 bytes of data: an Error or
// tensors that lie inside the bytes.
#include <string>

#include "base/check.h"
#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace {

void parse(const uint8_t* bytes, size_t size) {
  try {
    for (const auto& [name, tensor] : nibble::parse_safetensors("fuzz", bytes, size)) {
      CHECK(tensor.data >= bytes && tensor.size_bytes >= 0);
      CHECK(size_t(tensor.data - bytes) + size_t(tensor.size_bytes) <= size);
      CHECK(tensor.num_elements() * int64_t(nibble::dtype_bytes(tensor.dtype)) ==
            tensor.size_bytes);
    }
  } catch (const nibble::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  parse(bytes, size);
  std::string file;
  for (int i = 0; i < 8; ++i) file += char(size >> (8 * i));
  file.append(reinterpret_cast<const char*>(bytes), size).append(16, '\0');
  parse(reinterpret_cast<const uint8_t*>(file.data()), file.size());
  return 0;
}
