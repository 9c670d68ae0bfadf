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
  return amax / (kE2M1Max * kE4M3Max);
}

void encode_row(const float* values, float global_scale, int64_t cols, uint8_t* codes,
                uint8_t* scales) {
  CHECK(cols % kBlock == 0, "%ld columns", long(cols));
  std::fill_n(codes, cols / 2, uint8_t(0));
  for (int64_t b = 0; b < cols / kBlock; ++b) {
    const float* block = values + b * kBlock;
    float amax = 0;
    for (int i = 0; i < kBlock; ++i) amax = std::max(amax, std::fabs(block[i]));
    float scale = amax / (kE2M1Max * global_scale);
    if (amax == 0 || global_scale == 0) scale = 1.0f;
    scales[b] = float_to_e4m3(std::clamp(scale, 0x1p-9f, kE4M3Max));
    const float divisor = e4m3_to_float(scales[b]) * global_scale;
    for (int i = 0; i < kBlock; ++i) {
      const uint8_t code = divisor == 0 ? 0 : float_to_e2m1(block[i] / divisor);
      codes[(b * kBlock + i) / 2] |= uint8_t(code << (i % 2 * 4));
    }
  }
}

}  // namespace nibble::nvfp4
