// The layout of matrices on the card, made once at upload: in the order of tensor-core fragments,
// one layout for one row and for thousands.
//
//   matrix  tiles of 16 rows, one after another
//   tile    units of kInputs columns, one after another; columns beyond the matrix are zeros
//   unit    NVFP4  128 columns: 1,024 B of codes, then 128 B of scales, the two chunks of 64
//   columns
//                  apart in the codes: chunk c, lane l at 512 c + 16 l
//           BF16   64 columns: product j, lane l at 512 j + 16 l
//           F32    64 columns: a BF16 unit of the values rounded to BF16, then one of the rest
//
// Order of columns: in a chunk of 64, lane l of a warp (g = l / 4, t = l % 4) holds the 16 columns
// from 16 t on of rows g and g + 8, so that it decodes with one block scale a row; the product j of
// the chunk takes columns 16 t + 4 j .. + 3 as its slots 2t, 2t + 1, 2t + 8, 2t + 9.
//
// Codes: 16-bit halves, low half the even column. Of a0, a1, a2, a3 (ptx.cuh), the magnitudes are
// at bits 6, 0, 12 of the other half, and 3 without a3's lowest bit, which is bit 10; the signs at
// 15, 9, 5, 11. So shifts by 0, 6, a rotation by 10 and shifts by 4 both ways bring them to where
// BF16 has them. Scales: bytes (row g, row g + 8) of chunk 0, then of chunk 1, in E5M3 without
// sign, exponent bias 9: every positive E4M3 value is one. A block whose scale is 0 has codes 0.
//
// Order of the sum over K, the same in every kernel: a slice of units_per_slice units from zero,
// unit by unit and product by product; then the slices' sums, rising; then the row's factor. So a
// row's bits do not depend on the kernel that its batch takes.
#pragma once

#include <cstdint>
#include <memory>

#include "backend/cuda/weights.h"
#include "quant/weight.h"

namespace nibble::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kMaxSlices = 16;

// Passed to kernels by value.
struct PackedMatrices {
  const uint8_t* data = nullptr;   // [count][tiles][units][unit_bytes]
  const float* factors = nullptr;  // [count][16 tiles]: of the sum of a row's products
  Format format = Format::kBF16;
  int rows = 0, cols = 0;  // of one matrix
  int tiles = 0, units = 0;
  int slices = 0, units_per_slice = 0;
  int unit_bytes = 0;
  uint32_t tile_bytes = 0;
  // Rows 0-7 of tile i are rows 8i .. of the matrix' upper half, rows 8-15 those of its lower half:
  // a gate and its up projection meet in one thread. Else tile i has rows 16i .. 16i + 15.
  bool halves = false;
};

// Tiles that a block of at most kMaxWarps warps takes at once, a warp a slice: a power of two.
inline constexpr int kMaxWarps = 16;
inline int tiles_together(const PackedMatrices& w) {
  int together = 1;
  while (2 * together * w.slices <= kMaxWarps && together < 8) together *= 2;
  return together;
}

// Copies the weight to the card and packs it there. FP8 is packed as BF16 with its scale as the
// rows' factor; INT4, input scales and mixed formats are decoded on the host and packed as F32.
std::shared_ptr<const void> pack_matrices(const Uploads& to, const Weight& host, bool halves);

}  // namespace nibble::cuda
