// NVFP4: blocks of 16 E2M1 codes share an E4M3 scale, the tensor has one FP32 scale.
//
//   byte      0            1                      7         scale of the block
//         | k1 k0 |    | k3 k2 |    ...     | k15 k14 |     | e4m3 |
//          hi  lo       hi  lo               hi   lo
//
//   value[k] = e2m1(code[k]) * e4m3(scale[k / 16]) * global_scale
#pragma once

#include <cstdint>

namespace nibble::nvfp4 {

inline constexpr int kBlock = 16;
inline constexpr float kE2M1Max = 6.0f;
inline constexpr float kE4M3Max = 448.0f;

// Decodes one row of `cols` (a multiple of 16) columns.
void decode_row(const uint8_t* codes, const uint8_t* scales, float global_scale, int64_t cols,
                float* out);

// FP32 tensor scale of a matrix whose largest magnitude is `amax`: amax / 2688. 1 for a matrix of
// zeros, so that no reader divides by zero.
float global_scale_of(float amax);

// Rounds one row as ModelOpt does: block scale = e4m3(clamp(amax16 / (6 * global_scale), 2^-9,
// 448)), 1 for a block of zeros; codes by true division, ties to the even code.
void encode_row(const float* values, float global_scale, int64_t cols, uint8_t* codes,
                uint8_t* scales);

// The 16 codes (8 bytes) of a block whose scale, the tensor's included, is `scale` > 0.
void encode_block(const float* block, float scale, uint8_t* codes);

}  // namespace nibble::nvfp4
