// INT4 as compressed-tensors packs it (pack-quantized, symmetric): groups of columns share a scale.
//
//   little-endian 32-bit words of 8 columns, the first in the lowest nibble; so byte by byte
//         | k1 k0 |    | k3 k2 |    ...                  a nibble holds the value + 8
//          hi  lo       hi  lo
//
//   value[k] = (nibble[k] - 8) * scale[k / group_size]
#pragma once

#include <cstdint>

#include "base/tensor.h"

namespace nibble::int4 {

// Decodes one row of `cols` columns, a multiple of 8 and of `group_size`. `scales` are of
// `scale_dtype`, see stored_float(). Exact: code times a BF16 or F16 scale fits FP32; with F32
// scales it is the rounded product.
void decode_row(const uint8_t* words, const uint8_t* scales, DType scale_dtype, int group_size,
                int64_t cols, float* out);

}  // namespace nibble::int4
