// Which tiles (tiles.cuh, warpgroup_tiles.cuh) a card takes. For .cu files.
#pragma once

#include "backend/cuda/tiles.cuh"
#include "backend/cuda/warpgroup_tiles.cuh"

namespace nibble::cuda {

// Calls run(Tiles()) for a matrix' format and about `columns` rows of activations a matrix.
template <typename Run>
void with_tiles(const Context& context, Format format, int columns, Run&& run) {
  with_unit(format, [&]<typename Unit>(Unit) {
    if (order_of_tiles(context) == Order::kPlain) return run(MmaTiles<Unit>());
    if (columns <= 64) return run(WarpgroupTiles<Unit, 64>());
    run(WarpgroupTiles<Unit, 128>());
  });
}

}  // namespace nibble::cuda
