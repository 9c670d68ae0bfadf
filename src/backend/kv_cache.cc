#include "backend/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/numbers.h"

namespace nibble {
namespace {

constexpr int kBlock = 16;  // latent values of an E4M3 scale

void store_bf16(uint8_t* at, float value) {
  const uint16_t bits = float_to_bf16(value);
  std::memcpy(at, &bits, sizeof(bits));
}

float load_bf16(const uint8_t* at) {
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return bf16_to_float(bits);
}

float largest_magnitude(const float* values, int count) {
  float largest = 0;
  for (int i = 0; i < count; ++i) largest = std::max(largest, std::fabs(values[i]));
  return largest;
}

void encode_int8(const float* values, int count, uint8_t* codes, uint8_t* scale_at) {
  // A scale of zero would divide zeros by zero.
  store_bf16(scale_at, std::max(largest_magnitude(values, count), 1e-12f) / 127.0f);
  const float scale = load_bf16(scale_at);
  for (int i = 0; i < count; ++i) {
    const float code = std::nearbyint(values[i] / scale);
    codes[i] = uint8_t(int8_t(std::clamp(code, -127.0f, 127.0f)));
  }
}

void decode_int8(const uint8_t* codes, int count, const uint8_t* scale_at, float* values) {
  const float scale = load_bf16(scale_at);
  for (int i = 0; i < count; ++i) values[i] = float(int8_t(codes[i])) * scale;
}

uint8_t best_block_scale(const float* values) {
  const float amax = largest_magnitude(values, kBlock);
  uint8_t best = 0;
  float best_error = 0;
  for (const float divisor : {6.0f, 4.0f, 5.0f, 7.0f}) {
    const uint8_t scale = float_to_e4m3(std::clamp(amax / divisor, 0x1p-9f, 448.0f));
    float error = 0;
    for (int i = 0; i < kBlock; ++i) {
      const float rounded =
          e2m1_to_float(float_to_e2m1(values[i] / e4m3_to_float(scale))) * e4m3_to_float(scale);
      error += (rounded - values[i]) * (rounded - values[i]);
    }
    if (divisor == 6.0f || error < best_error) best = scale, best_error = error;
  }
  return best;
}

void encode_e2m1(const float* values, int count, uint8_t* codes, uint8_t* block_scales) {
  for (int block = 0; block < count / kBlock; ++block) {
    const float* from = values + block * kBlock;
    block_scales[block] = best_block_scale(from);
    const float scale = e4m3_to_float(block_scales[block]);
    for (int i = 0; i < kBlock; i += 2) {
      codes[(block * kBlock + i) / 2] =
          uint8_t(float_to_e2m1(from[i] / scale) | float_to_e2m1(from[i + 1] / scale) << 4);
    }
  }
}

void decode_e2m1(const uint8_t* codes, const uint8_t* block_scales, int count, float* values) {
  for (int i = 0; i < count; ++i) {
    const uint8_t code = uint8_t(codes[i / 2] >> (i % 2 * 4)) & 15;
    values[i] = e2m1_to_float(code) * e4m3_to_float(block_scales[i / kBlock]);
  }
}

}  // namespace

int64_t kv_value_bytes(const KvLayer& layer) {
  switch (layer.format) {
    case KvFormat::kF32:
      return int64_t(layer.width) * 4;
    case KvFormat::kBF16:
      return int64_t(layer.width) * 2;
    case KvFormat::kFp8:
    case KvFormat::kInt8:
      return layer.width;
    case KvFormat::kNvfp4:
      return layer.latent / 2 + layer.latent / kBlock + (layer.width - layer.latent);
  }
  return 0;
}

int64_t kv_scale_bytes(const KvLayer& layer) {
  return layer.format == KvFormat::kInt8 ? 4 : layer.format == KvFormat::kNvfp4 ? 2 : 0;
}

int64_t kv_page_bytes(const KvLayer& layer) {
  const int64_t bytes = layer.page_size * kv_record_bytes(layer);
  return kv_scale_bytes(layer) == 0 ? bytes : (bytes + 15) / 16 * 16;
}

void encode_record(const KvLayer& layer, const float* values, KvRecord record) {
  const int latent = layer.latent, rope = layer.width - layer.latent;
  switch (layer.format) {
    case KvFormat::kF32:
      std::memcpy(record.values, values, size_t(layer.width) * 4);
      return;
    case KvFormat::kBF16:
      for (int i = 0; i < layer.width; ++i) store_bf16(record.values + 2 * i, values[i]);
      return;
    case KvFormat::kFp8:
      for (int i = 0; i < layer.width; ++i) record.values[i] = float_to_e4m3(values[i]);
      return;
    case KvFormat::kInt8:
      encode_int8(values, latent, record.values, record.scales);
      encode_int8(values + latent, rope, record.values + latent, record.scales + 2);
      return;
    case KvFormat::kNvfp4:
      encode_e2m1(values, latent, record.values, record.values + latent / 2);
      encode_int8(values + latent, rope, record.values + latent / 2 + latent / kBlock,
                  record.scales);
      return;
  }
}

void decode_record(const KvLayer& layer, KvRecord record, float* values) {
  const int latent = layer.latent, rope = layer.width - layer.latent;
  switch (layer.format) {
    case KvFormat::kF32:
      std::memcpy(values, record.values, size_t(layer.width) * 4);
      return;
    case KvFormat::kBF16:
      for (int i = 0; i < layer.width; ++i) values[i] = load_bf16(record.values + 2 * i);
      return;
    case KvFormat::kFp8:
      for (int i = 0; i < layer.width; ++i) values[i] = e4m3_to_float(record.values[i]);
      return;
    case KvFormat::kInt8:
      decode_int8(record.values, latent, record.scales, values);
      decode_int8(record.values + latent, rope, record.scales + 2, values + latent);
      return;
    case KvFormat::kNvfp4:
      decode_e2m1(record.values, record.values + latent / 2, latent, values);
      decode_int8(record.values + latent / 2 + latent / kBlock, rope, record.scales,
                  values + latent);
      return;
  }
}

}  // namespace nibble
