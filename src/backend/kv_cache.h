// The latent cache: a record a token and layer, [normalised latent | rotated rope key], in pages.
//
//   page p of a layer, at p * kv_page_bytes:
//     values of record 0 | values of record 1 | ... | values of record page_size-1
//     scales of record 0 | scales of record 1 | ... | padding to 16 bytes
//
//            bytes of values                                                     bytes of scales
//   kF32     4 a value (tests, exact evaluation)                                 0
//   kBF16    2 a value                                                           0
//   kFp8     1 a value: E4M3, scale 1, saturating                                0
//   kInt8    1 a value: int8, -127..127, times its part's scale                  4: latent, rope
//   (BF16) kNvfp4   latent / 2: E2M1, low nibble = even value | latent / 16: E4M3 block scales
//            | rope: int8 times its scale                                        2: rope (BF16)
//
// Integer scales are BF16(amax / 127) of the part; a block scale is the E4M3 of amax / 6, / 4, / 5
// or / 7 with the least squared error, the first of equals.
#pragma once

#include <cstdint>

namespace nibble {

enum class KvFormat : uint8_t { kF32, kBF16, kFp8, kInt8, kNvfp4 };

// One layer's cache, in a backend's memory.
struct KvLayer {
  void* data = nullptr;
  KvFormat format = KvFormat::kBF16;
  int page_size = 0;  // tokens a page
  int width = 0;      // values a record: latent + rope
  int latent = 0;     // the first of them; kNvfp4: a multiple of 16
};

int64_t kv_value_bytes(const KvLayer& layer);  // of a record
int64_t kv_scale_bytes(const KvLayer& layer);  // of a record
int64_t kv_page_bytes(const KvLayer& layer);
inline int64_t kv_record_bytes(const KvLayer& layer) {
  return kv_value_bytes(layer) + kv_scale_bytes(layer);
}

// Where the parts of a record lie.
struct KvRecord {
  uint8_t* values = nullptr;
  uint8_t* scales = nullptr;
};

inline KvRecord kv_record(const KvLayer& layer, int64_t page, int64_t slot) {
  uint8_t* const start = static_cast<uint8_t*>(layer.data) + page * kv_page_bytes(layer);
  return {start + slot * kv_value_bytes(layer),
          start + layer.page_size * kv_value_bytes(layer) + slot * kv_scale_bytes(layer)};
}

// Scalar truth of a record: `width` floats <-> its bytes. Encoding rounds to nearest even.
void encode_record(const KvLayer& layer, const float* values, KvRecord record);
void decode_record(const KvLayer& layer, KvRecord record, float* values);

}  // namespace nibble
