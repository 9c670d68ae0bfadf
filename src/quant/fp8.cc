#include "quant/fp8.h"

#include "base/numbers.h"

namespace nibble::fp8 {

void decode_row(const uint8_t* codes, float scale, int64_t cols, float* out) {
  for (int64_t k = 0; k < cols; ++k) out[k] = e4m3_to_float(codes[k]) * scale;
}

float scale_of(float amax) {
  return amax / 448.0f;
}

void encode_row(const float* values, float scale, int64_t cols, uint8_t* codes) {
  for (int64_t k = 0; k < cols; ++k) {
    codes[k] = scale == 0 ? uint8_t(0) : float_to_e4m3(values[k] / scale);
  }
}

}  // namespace nibble::fp8
