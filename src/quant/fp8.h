// FP8: one E4M3 code a value, the tensor has one FP32 scale.
//
//   value[k] = e4m3(code[k]) * scale
#pragma once

#include <cstdint>

namespace nibble::fp8 {

// Decodes one row of `cols` columns.
void decode_row(const uint8_t* codes, float scale, int64_t cols, float* out);

// FP32 scale of a matrix whose largest magnitude is `amax`: amax / 448.
float scale_of(float amax);

// Rounds one row to the nearest codes, ties to the even one; values beyond 448 * scale saturate. A
// scale of 0 gives zeros.
void encode_row(const float* values, float scale, int64_t cols, uint8_t* codes);

}  // namespace nibble::fp8
