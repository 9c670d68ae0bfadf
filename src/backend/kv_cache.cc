#include "backend/kv_cache.h"

#include <cstring>

#include "base/numbers.h"

namespace nibble {

int64_t kv_record_bytes(KvFormat format, int width) {
  switch (format) {
    case KvFormat::kF32:
      return int64_t(width) * 4;
    case KvFormat::kBF16:
      return int64_t(width) * 2;
    case KvFormat::kFp8:
      return width;
  }
  return 0;
}

void encode_record(KvFormat format, const float* values, int width, void* record) {
  switch (format) {
    case KvFormat::kF32:
      std::memcpy(record, values, size_t(width) * 4);
      return;
    case KvFormat::kBF16:
      for (int i = 0; i < width; ++i) static_cast<uint16_t*>(record)[i] = float_to_bf16(values[i]);
      return;
    case KvFormat::kFp8:
      for (int i = 0; i < width; ++i) static_cast<uint8_t*>(record)[i] = float_to_e4m3(values[i]);
      return;
  }
}

void decode_record(KvFormat format, const void* record, int width, float* values) {
  switch (format) {
    case KvFormat::kF32:
      std::memcpy(values, record, size_t(width) * 4);
      return;
    case KvFormat::kBF16:
      for (int i = 0; i < width; ++i)
        values[i] = bf16_to_float(static_cast<const uint16_t*>(record)[i]);
      return;
    case KvFormat::kFp8:
      for (int i = 0; i < width; ++i)
        values[i] = e4m3_to_float(static_cast<const uint8_t*>(record)[i]);
      return;
  }
}

}  // namespace nibble
