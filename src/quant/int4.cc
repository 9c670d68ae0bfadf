#include "quant/int4.h"

#include "quant/stored_float.h"

namespace nibble::int4 {

void decode_row(const uint8_t* words, const uint8_t* scales, DType scale_dtype, int group_size,
                int64_t cols, float* out) {
  for (int64_t first = 0; first < cols; first += group_size) {
    const float scale = stored_float(scales, scale_dtype, first / group_size);
    for (int64_t k = first; k < first + group_size; ++k) {
      const int nibble = (words[k / 2] >> (k % 2 * 4)) & 15;
      out[k] = float(nibble - 8) * scale;
    }
  }
}

}  // namespace nibble::int4
