// Any bytes as a safetensors file: an Error or tensors that lie inside the bytes.
#include "base/check.h"
#include "base/error.h"
#include "checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  try {
    for (const auto& [name, tensor] : nibble::parse_safetensors("fuzz", bytes, size)) {
      CHECK(tensor.data >= bytes && tensor.size_bytes >= 0);
      CHECK(size_t(tensor.data - bytes) + size_t(tensor.size_bytes) <= size);
      CHECK(tensor.num_elements() * int64_t(nibble::dtype_bytes(tensor.dtype)) ==
            tensor.size_bytes);
    }
  } catch (const nibble::Error&) {
  }
  return 0;
}
