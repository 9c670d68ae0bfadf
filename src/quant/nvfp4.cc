#include "quant/nvfp4.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/numbers.h"

namespace nibble::nvfp4 {

void decode_row(const uint8_t* codes, const uint8_t* scales, float global_scale, int64_t cols,
                float* out) {
  for (int64_t k = 0; k < cols; ++k) {
    const uint8_t code = (codes[k / 2] >> (k % 2 * 4)) & 15;
    out[k] = e2m1_to_float(code) * (e4m3_to_float(scales[k / kBlock]) * global_scale);
  }
}

float global_scale_of(float amax) {
  return amax == 0 ? 1.0f : amax / (kE2M1Max * kE4M3Max);
}

void encode_block(const float* block, float scale, uint8_t* codes) {
  uint8_t nibbles[kBlock];
  for (int i = 0; i < kBlock; ++i) nibbles[i] = float_to_e2m1(block[i] / scale);
  for (int i = 0; i < kBlock / 2; ++i) {
    codes[i] = uint8_t(nibbles[2 * i] | nibbles[2 * i + 1] << 4);
  }
}

void encode_row(const float* values, float global_scale, int64_t cols, uint8_t* codes,
                uint8_t* scales) {
  CHECK(cols % kBlock == 0, "%ld columns", long(cols));
  for (int64_t b = 0; b < cols / kBlock; ++b) {
    const float* block = values + b * kBlock;
    float amax = 0;
    for (int i = 0; i < kBlock; ++i) amax = std::max(amax, std::fabs(block[i]));
    const float scale = amax == 0 ? 1.0f : amax / (kE2M1Max * global_scale);
    scales[b] = float_to_e4m3(std::clamp(scale, 0x1p-9f, kE4M3Max));
    encode_block(block, e4m3_to_float(scales[b]) * global_scale, codes + b * kBlock / 2);
  }
}

}  // namespace nibble::nvfp4
