// out = x w^T for 9 to 64 rows of matrices with few tiles: packed.h's formula. A warp takes a slice
// of K of two tiles by up to four groups of 8 rows: it decodes the matrix once for all of them and
// reads the rows once for 32 outputs. The slices' sums meet in shared memory.
//
// 64 rows in NVFP4 (backend_bench --benchmark_filter=wide) on an H100 80GB HBM3: 2048 x 5120 10.1
// us, 133 TFLOP/s, bound by L2, from which each block reads its rows, 42 MB in all; 5120 x 768 7.9
// us and 1344 x 2048 5.0 us by their one chain of loads, products and sums.
#include "backend/cuda/fragments.cuh"
#include "backend/cuda/launch.h"
#include "backend/cuda/stream.cuh"

namespace nibble::cuda {
namespace {

template <typename Unit, int groups>
struct GroupShape {
  static constexpr int kTilesAWarp = Unit::kProducts == 1 ? 2 : 1;
  static constexpr int kRows = groups * kRowGroup;
  static constexpr int kPitch = kTileRows + 4;  // of a row's sums: lanes meet all banks
  static constexpr int kTileFloats = kRows * kPitch;

  // The sums of all warps, and a factor for each thread.
  static constexpr size_t shared_bytes(int warps) {
    return size_t(warps) * (kTilesAWarp * kTileFloats + kWarp) * sizeof(float);
  }
};

__device__ __forceinline__ void prefetch(const uint8_t* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

// threadIdx.x, read anew: what depends on it takes no registers before.
__device__ __forceinline__ int thread_again() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// Blocks: x = tiles, y = rows. Warps: `together` times the slices.
template <typename Unit, int groups>
__global__ void __launch_bounds__(kMaxWarps* kWarp, 1)
    linear_groups_kernel(PackedMatrices w, Activations x, Results out, int together) {
  using Shape = GroupShape<Unit, groups>;
  constexpr int kTiles = Shape::kTilesAWarp;
  extern __shared__ __align__(16) float partials[];
  let_successor_begin();
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const int g = lane / 4, t = lane % 4;
  int part = 0, slice = warp;
  while (slice >= w.slices) slice -= w.slices, ++part;
  const int first_unit = slice * w.units_per_slice;
  const int units = min(w.units - first_unit, w.units_per_slice);
  const int first_tile = int(blockIdx.x) * together * kTiles;

  uint32_t data[kTiles];  // bytes from its start: a matrix has less than 4 GB
  typename Unit::Raw raw[kTiles];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    // Tiles beyond the last are the last again, and dropped.
    const int tile = min(first_tile + part * kTiles + m, w.tiles - 1);
    data[m] = uint32_t(tile) * w.tile_bytes + first_unit * Unit::kBytes;
    raw[m] = Unit::load(w.data + data[m], lane);
    for (int at = Unit::kBytes + lane * 128; at < units * Unit::kBytes; at += kWarp * 128) {
      prefetch(w.data + data[m] + at);
    }
  }
  // The output that a thread adds up, of every so many-th row.
  const int added_tile = int(threadIdx.x / kTileRows) & (together * kTiles - 1);
  const int output = (first_tile + added_tile) * kTileRows + int(threadIdx.x % kTileRows);
  // It waits in shared memory: registers are short.
  const auto factor_of = [&](int thread) -> float& {
    return partials[int(blockDim.x / kWarp) * kTiles * Shape::kTileFloats + thread];
  };
  factor_of(int(threadIdx.x)) = output < w.rows ? w.factors[output] : 0.0f;
  const int first_row = int(blockIdx.y) * Shape::kRows;
  const int rows = min(Shape::kRows, x.rows - first_row);
  const int column = first_unit * Unit::kInputs + t * kBlockInputs;
  const bf16* from = static_cast<const bf16*>(x.data) + (first_row + g) * x.stride + column;
  const int group_stride = kRowGroup * int(x.stride);
  int left = x.cols - column;  // columns from there on
  wait_for_predecessor();

  float sums[kTiles][groups][4] = {};
#pragma unroll 1
  for (int unit = 0; unit < units; ++unit) {
    typename Unit::Registers registers[kTiles];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) registers[m] = Unit::unpack(raw[m]);
#pragma unroll
    for (int c = 0; c < Unit::kChunks; ++c) {
      uint32_t inputs[groups][8] = {};
#pragma unroll
      for (int n = 0; n < groups; ++n) {
        if (n * kRowGroup + g >= rows || left <= c * kChunkInputs) continue;
        const auto* at = reinterpret_cast<const uint4*>(from + n * group_stride + c * kChunkInputs);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint4 v = at[i];
          inputs[n][4 * i] = v.x, inputs[n][4 * i + 1] = v.y;
          inputs[n][4 * i + 2] = v.z, inputs[n][4 * i + 3] = v.w;
        }
      }
#pragma unroll
      for (int m = 0; m < kTiles; ++m) multiply_chunk<Unit>(sums[m], registers[m], c, inputs);
    }
    if (unit + 1 == units) break;
    from += Unit::kInputs, left -= Unit::kInputs;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      data[m] += Unit::kBytes;
      raw[m] = Unit::load(w.data + data[m], lane);
    }
  }

  const int thread = thread_again();
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    float* to = partials + (thread / kWarp * kTiles + m) * Shape::kTileFloats;
#pragma unroll
    for (int n = 0; n < groups; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        to[(n * kRowGroup + 2 * (thread % 4) + i % 2) * Shape::kPitch + thread % kWarp / 4 +
           i / 2 * 8] = sums[m][n][i];
      }
    }
  }
  __syncthreads();
  if (output >= w.rows) return;
  const float factor = factor_of(thread);
  const int rows_apart = int(blockDim.x) / (together * kTiles * kTileRows);
  const float* sums_of =
      partials +
      (added_tile / kTiles * w.slices * kTiles + added_tile % kTiles) * Shape::kTileFloats +
      int(threadIdx.x % kTileRows);
  for (int row = int(threadIdx.x) / (together * kTiles * kTileRows); row < rows;
       row += rows_apart) {
    float total = 0;
#pragma unroll
    for (int s = 0; s < kMaxSlices; ++s) {
      if (s < w.slices) total += sums_of[s * kTiles * Shape::kTileFloats + row * Shape::kPitch];
    }
    store(out, first_row + row, output, total * factor);
  }
}

}  // namespace

void linear_groups(const Context& context, const Activations& x, const PackedMatrices& w,
                   const Results& out) {
  const auto run = [&]<typename Unit, int groups>(Unit, std::integral_constant<int, groups>) {
    using Shape = GroupShape<Unit, groups>;
    const int together = w.slices * 2 <= kMaxWarps ? 2 : 1, warps = together * w.slices;
    const auto kernel = linear_groups_kernel<Unit, groups>;
    allow_shared(kernel, Shape::shared_bytes(warps));
    launch(context,
           {.blocks = {blocks_for(w.tiles, together * Shape::kTilesAWarp),
                       blocks_for(x.rows, Shape::kRows)},
            .threads = warps * kWarp,
            .shared_bytes = Shape::shared_bytes(warps)},
           kernel, w, x, out, together);
  };
  with_unit(w.format, [&]<typename Unit>(Unit unit) {
    if (x.rows <= 2 * kRowGroup) return run(unit, std::integral_constant<int, 2>());
    run(unit, std::integral_constant<int, 4>());
  });
}

}  // namespace nibble::cuda
