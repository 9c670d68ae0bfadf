// out = x w^T for one row: packed.h's formula, row.cuh's tiling, an item = the tiles of a block at
// once. The row may be a norm's output, which each block then makes for itself: that takes less
// time than handing it over.
//
// Share of 3.0 TB/s (backend_bench --benchmark_filter=wide) on an H100 80GB HBM3, NVFP4 before one
// unit of each warp was decoded before the wait:
//   BF16   154880 x 2048  96 %    2048 x 5120  75 %
//   NVFP4  20480 x 2048   63 %    2048 x 10240 52 %    3072 x 2048  35 %
//          2048 x 5120    45 %    5120 x 768   23 %    2048 x 1536  23 %
//          1344 x 2048    22 %: 2.3 us, of which its bytes take 0.5
// In a step the next kernel's weights come meanwhile; what is left of the small ones is the
// hand-over, the way of the inputs from L2, and the decoding of what could not be decoded before:
// one unit of a warp is, with registers that leave room for the kernels beside it.
#include "backend/cuda/dtypes.h"
#include "backend/cuda/norm_row.cuh"
#include "backend/cuda/row.cuh"

namespace nibble::cuda {
namespace {

// Of a block's inputs, in shared memory.
struct InputMemory {
  float* sums = nullptr;   // kWarp a step of columns
  float* added = nullptr;  // a row
  bf16* inputs = nullptr;  // a row, as many columns as the matrix' units have
};

// A row as it lies in memory: a warp brings the columns of its slice. The warps of each tile have a
// row of their own.
struct PlainRow {
  static constexpr bool kAlone = true;
  using AtOnce = AtOncePlan<1, 3, 1>;
  static constexpr int kRegisters = 64;
  Activations x;

  static size_t shared_bytes(int cols, int together) {
    return size_t(together) * cols * sizeof(bf16);
  }
  __device__ static InputMemory memory(uint8_t* shared, int cols, const RowPart& own) {
    return {.inputs = reinterpret_cast<bf16*>(shared) + own.part * cols};
  }
  __device__ __forceinline__ void begin(const InputMemory& memory, int first, int columns) {
    wait_for_predecessor();
    stage_columns<3>(static_cast<const uint4*>(x.data) + first / kLaneColumns, int(x.cols) - first,
                     columns, reinterpret_cast<uint4*>(memory.inputs + first));
    __syncwarp();
  }
  __device__ __forceinline__ void meet(const InputMemory&) const { __syncthreads(); }
};

template <typename X>
struct NormedRow {
  static constexpr bool kAlone = false;
  using AtOnce = AtOncePlan<2, 1, 1>;
  static constexpr int kRegisters = 72;
  SharedNorm<X> norm;

  static size_t shared_bytes(int cols, int) {
    return size_t(cols) * (sizeof(bf16) + sizeof(float)) +
           size_t(cols / kLaneColumns) * sizeof(float);
  }
  __device__ static InputMemory memory(uint8_t* shared, int cols, const RowPart&) {
    auto* const added = reinterpret_cast<float*>(shared);
    auto* const sums = added + cols;
    return {.sums = sums,
            .added = added,
            .inputs = reinterpret_cast<bf16*>(sums + cols / kLaneColumns)};
  }
  __device__ __forceinline__ void begin(const InputMemory& memory, int, int) {
    const Columns<float> gains = gains_of_thread(norm.rows);
    wait_for_predecessor();
    norm.make(gains, memory.sums, memory.added, memory.inputs);
  }
  __device__ __forceinline__ void meet(const InputMemory& memory) const { norm.meet(memory.added); }
};

template <typename Source>
struct RowWork {
  const PackedMatrices& w;
  Source& source;
  const RowPart& own;
  InputMemory memory;
  Results out;
  int first_tile, together;  // of the block's first item
  int slice_first, slice_columns;

  __device__ __forceinline__ int tile_of(int item, int part) const {
    return first_tile + item * together + part;
  }
  using Spot = const uint8_t*;
  __device__ __forceinline__ Spot spot(int item, unsigned bytes) const {
    const int tile = min(tile_of(item, own.part), w.tiles - 1);
    return w.data + size_t(unsigned(tile)) * w.tile_bytes + bytes;
  }
  __device__ __forceinline__ const uint8_t* address_of(Spot spot, bool) const { return spot; }
  static constexpr bool kAllKnown = true;
  __device__ int items_known() const { return w.tiles; }
  __device__ void all_fetched() const {}
  __device__ __forceinline__ void meet() const { source.meet(memory); }
  static constexpr int kSpareBytes = 0;
  __device__ __forceinline__ void begin(uint8_t*, int) {
    source.begin(memory, slice_first, slice_columns);
  }
  __device__ __forceinline__ const bf16* columns(int) const { return memory.inputs + slice_first; }
  __device__ __forceinline__ float factor(int item, int part, int i) const {
    return w.factors[min(tile_of(item, part), w.tiles - 1) * kTileRows + i];
  }
  __device__ __forceinline__ void finish(int item, int part, int i, float product) const {
    const int row = tile_of(item, part) * kTileRows + i;
    if (part >= 0 && row < w.rows) store(out, 0, row, product);
  }
};

// Few units of NVFP4 can be decoded early, where all blocks are there at once. Registers: so that
// the kernels before and after can be there, too.
template <typename Source>
struct ShortPlan : Source::AtOnce {
  static constexpr int kRegisters = Source::kRegisters;
};
template <typename Unit>
struct LongPlan : RowPlan<Unit::kStages> {
  static constexpr int kRegisters = Unit::kProducts > 1 ? 128 : 64;
};
template <typename Unit>
constexpr int kBlocks = Unit::kProducts > 1 ? 1 : 2;  // a multiprocessor

// Elsewhere than on sm_90, 72 registers are too few.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
constexpr int registers_here(int wanted) {
  return (wanted + 15) / 16 * 16;
}
#else
constexpr int registers_here(int wanted) {
  return wanted;
}
#endif

template <typename Unit, typename Plan, typename Source>
__global__ void __maxnreg__(registers_here(Plan::kRegisters))
    linear_row_kernel(PackedMatrices w, Source source, Results out, int items, int together,
                      int sums_bytes) {
  const int ring_bytes = int(Plan::template ring_bytes<Unit>(int(blockDim.x) / kWarp));
  extern __shared__ __align__(16) uint8_t shared[];
  let_successor_begin();
  const RowPart own(w);
  const int begin = int(unsigned(items) * blockIdx.x / gridDim.x);
  const int end = int(unsigned(items) * (blockIdx.x + 1) / gridDim.x);
  const InputMemory memory =
      Source::memory(shared + ring_bytes + sums_bytes, w.units * Unit::kInputs, own);
  RowWork<Source> work{.w = w,
                       .source = source,
                       .own = own,
                       .memory = memory,
                       .out = out,
                       .first_tile = begin * together,
                       .together = together,
                       .slice_first = own.first_unit * Unit::kInputs,
                       .slice_columns = own.units * Unit::kInputs};
  multiply_row<Unit, Plan>(w, own, work, end - begin, together, shared,
                           reinterpret_cast<float*>(shared + ring_bytes));
}

template <typename Unit, typename Plan, typename Source>
void launch_plan(const Context& context, const PackedMatrices& w, const Source& source,
                 const Results& out, unsigned items, unsigned blocks) {
  const int together = tiles_together(w), warps = together * w.slices;
  const size_t sums_bytes = row_sums_bytes(w, int(blocks_for(items, blocks)), together);
  Grid grid{.blocks = {blocks},
            .threads = warps * kWarp,
            .shared_bytes = Plan::template ring_bytes<Unit>(warps) + sums_bytes +
                            Source::shared_bytes(w.units * Unit::kInputs, together)};
  if (Source::kAlone) grid = one_a_processor(context, grid);
  const auto kernel = linear_row_kernel<Unit, Plan, Source>;
  allow_shared(kernel, grid.shared_bytes);
  launch(context, grid, kernel, w, source, out, int(items), together, int(sums_bytes));
}

template <typename Unit, typename Source>
void launch_row(const Context& context, const PackedMatrices& w, const Source& source,
                const Results& out) {
  const int together = tiles_together(w);
  const unsigned items = blocks_for(w.tiles, together);
  const unsigned resident = unsigned(context.device.num_processors * kBlocks<Unit>);
  const unsigned blocks =
      std::max(std::min(items, resident), blocks_for(items, most_row_items(w, together)));
  if constexpr (Unit::kChunks == 2) {
    using Plan = ShortPlan<Source>;
    constexpr int kRegistersOfProcessor = 65536;
    const int fit = kRegistersOfProcessor / (together * w.slices * kWarp * Plan::kRegisters);
    if (Plan::takes(w, int(blocks_for(items, blocks))) &&
        blocks <= unsigned(context.device.num_processors * fit)) {
      return launch_plan<Unit, Plan>(context, w, source, out, items, blocks);
    }
  }
  launch_plan<Unit, LongPlan<Unit>>(context, w, source, out, items, blocks);
}

}  // namespace

void linear_row(const Context& context, const Activations& x, const PackedMatrices& w,
                const Results& out) {
  with_unit(w.format, [&]<typename Unit>(Unit) { launch_row<Unit>(context, w, PlainRow{x}, out); });
}

bool can_multiply_norm_row(const Norm& norm, const PackedMatrices& w) {
  return is_in_steps(norm) && norm.x.rows == 1 && w.format == Format::kNvfp4 &&
         norm.x.cols / kStepColumns <= tiles_together(w) * w.slices &&
         (norm.delta.data == nullptr || norm.x.dtype == DType::kF32);
}

void norm_and_linear_row(const Context& context, const Norm& norm, const PackedMatrices& w,
                         const Results& out) {
  with_activation(norm.x.dtype, [&]<typename X>(X) {
    const NormedRow<X> source{SharedNorm<X>(norm)};
    launch_row<Nvfp4Unit>(context, w, source, out);
  });
}

}  // namespace nibble::cuda
