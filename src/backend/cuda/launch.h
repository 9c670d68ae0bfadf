// How kernels are launched: all of them in one stream, each allowed to begin before its predecessor
// ends, where the card can do that. For .cu files.
//
// So every kernel must call wait_for_predecessor() (ptx.cuh) in all its threads before it reads
// what an earlier kernel wrote and before it writes anything; only weights and the step's arrays
// may be read earlier.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "backend/cuda/memory.h"
#include "backend/cuda/step_arrays.h"

namespace nibble::cuda {

inline constexpr int kNumCounters = 4096;

// What an operation needs beside its arguments.
struct Context {
  const Device& device;
  cudaStream_t stream;
  Workspace& workspace;  // of one operation at a time
  const StepView& step;  // of the batch of begin_step()
  int* counters;         // kNumCounters in the card's memory, zero between operations
  bool& serializes;      // the next kernel begins only when all before it have ended
};

struct Grid {
  dim3 blocks{1};
  int threads = 256;
  size_t shared_bytes = 0;  // dynamic; over 48 KiB after allow_shared()
  unsigned cluster = 1;     // blocks in x that share their memory; more than 1 from sm_90 on
};

// For a kernel that takes more than 48 KiB of shared memory; once a kernel, before its launch.
template <typename Kernel>
void allow_shared(Kernel* kernel, size_t bytes) {
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
}

// What the runtime wants to know of a launch.
struct LaunchConfig {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[3] = {};

  LaunchConfig(const Context& context, const Grid& grid) {
    // One division of the multiprocessor's memory for all kernels: two that want it different
    // cannot be there together.
    attributes[0].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attributes[0].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid.blocks;
    config.blockDim = dim3(unsigned(grid.threads));
    config.dynamicSmemBytes = grid.shared_bytes;
    config.stream = context.stream;
    config.attrs = attributes;
    config.numAttrs = context.device.has_dependent_launch() ? 2 : 1;
    if (grid.cluster > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs++].val.clusterDim = {grid.cluster, 1, 1};
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;  // config points to the attributes
  void serialize() { attributes[1].val.programmaticStreamSerializationAllowed = 0; }
};

// Launches nothing when the grid is empty.
template <typename... Params, typename... Args>
void launch(const Context& context, const Grid& grid, void (*kernel)(Params...), Args&&... args) {
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return;
  LaunchConfig launch(context, grid);
  if (std::exchange(context.serializes, false)) launch.serialize();
  CUDA_CHECK(cudaLaunchKernelEx(&launch.config, kernel, Params(std::forward<Args>(args))...));
}

// How many of the grid's clusters the card holds at once: fewer than it has multiprocessors for,
// where their groups are of other sizes. After allow_shared().
template <typename Kernel>
unsigned resident_clusters(const Context& context, const Grid& grid, Kernel* kernel) {
  const LaunchConfig launch(context, grid);
  int clusters = 0;
  CUDA_CHECK(cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config));
  return unsigned(clusters);
}

// A grid of which no two blocks share a multiprocessor, where each can have one: blocks go to the
// emptiest, and so two to some, while the kernel before is there.
inline Grid one_a_processor(const Context& context, Grid grid) {
  const uint64_t blocks = uint64_t(grid.blocks.x) * grid.blocks.y * grid.blocks.z;
  if (blocks <= uint64_t(context.device.num_processors)) {
    grid.shared_bytes = std::max(grid.shared_bytes, context.device.shared_bytes / 2 + 1);
  }
  return grid;
}

// Blocks of `each` that cover `count`.
constexpr unsigned blocks_for(int64_t count, int64_t each) {
  return unsigned((count + each - 1) / each);
}

}  // namespace nibble::cuda
