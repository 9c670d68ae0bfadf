// Rounding of a row to NVFP4 block by block, each block's error made good by the ones after it.
#pragma once

#include <cstdint>

namespace nibble {

inline constexpr int kFeedbackRows = 8;  // that are rounded together

// A matrix's columns in the order in which they are rounded, and how much of a column's error the
// later ones take over.
struct Feedback {
  int64_t cols = 0;
  // Of block b, its part [16 b][16] of the factors: column 16 b + c takes factor[j][c] of the error
  // of column j. Blocks one after another: block b begins at 128 b (b - 1).
  const float* before = nullptr;
  // [cols / 16][16][16]: the same inside a block; only j < c counts.
  const float* inside = nullptr;
  // [cols]: weight of a column's squared error.
  const float* weight = nullptr;
};

struct ScaleSearch {  // E4M3 codes tried around the one of the block's largest magnitude
  float tensor_scale = 1.0f;
  int lowest = -7;
  int highest = 6;  // at most 16 codes
};

// Rounds up to kFeedbackRows rows of targets, which are in the order of the feedback; replaces them
// by their errors (target - rounded). codes: [rows][cols] E2M1, one a byte; scales:
// [rows][cols / 16]. Returns the weighted squared error.
double round_rows_with_feedback(const Feedback& feedback, const ScaleSearch& search, int64_t rows,
                                float* targets, uint8_t* codes, uint8_t* scales);

}  // namespace nibble
