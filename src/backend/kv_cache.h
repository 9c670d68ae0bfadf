// The latent cache: a record a token and layer, [normalised latent | rotated rope key], in pages.
//
//   page p of a layer:  record 0 | record 1 | ... | record page_size-1      at p * page_bytes
//   kF32   4 B a value (tests)    kBF16  2 B a value    kFp8  1 B: E4M3, scale 1, saturating
#pragma once

#include <cstdint>

namespace nibble {

enum class KvFormat : uint8_t { kF32, kBF16, kFp8 };

// One layer's cache, in a backend's memory.
struct KvLayer {
  void* data = nullptr;
  KvFormat format = KvFormat::kBF16;
  int page_size = 0;  // tokens a page
  int width = 0;      // values a record: latent + rope
};

int64_t kv_record_bytes(KvFormat format, int width);
inline int64_t kv_page_bytes(const KvLayer& layer) {
  return layer.page_size * kv_record_bytes(layer.format, layer.width);
}

// Scalar truth of a record: `width` floats <-> its bytes. Encoding rounds to nearest even.
void encode_record(KvFormat format, const float* values, int width, void* record);
void decode_record(KvFormat format, const void* record, int width, float* values);

}  // namespace nibble
