// How a product is cut into tiles, whose number of rows is a constant of the kernel's code, so that
// all sums stay in registers.
#pragma once

#include <cstdint>
#include <type_traits>

#include "backend/cpu/multiply.h"

namespace nibble {

// body(std::integral_constant<int, count>) for a count of 1 to kMost.
template <int kMost, typename Body>
inline void with_constant(int64_t count, const Body& body) {
  if (count == kMost) {
    body(std::integral_constant<int, kMost>());
  } else if constexpr (kMost > 1) {
    with_constant<kMost - 1>(count, body);
  }
}

// tile(number of rows, first row, panel) for as few tiles of at most kMaxRows rows as it takes, of
// about the same number of rows, panel by panel.
template <int kMaxRows, typename Tile>
inline void for_each_tile(const Product& product, const Tile& tile) {
  const int64_t tiles = (product.rows + kMaxRows - 1) / kMaxRows;
  for (int64_t p = product.first_panel; p < product.last_panel; ++p) {
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t row = product.rows * i / tiles, end = product.rows * (i + 1) / tiles;
      with_constant<kMaxRows>(end - row, [&](auto count) { tile(count, row, p); });
    }
  }
}

}  // namespace nibble
