// Makes the codes of a head (head.h) from its packed BF16 rows: a block a tile.
#include <algorithm>

#include "backend/cuda/head.h"
#include "backend/cuda/head_unit.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

__device__ float low_value(uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ float high_value(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}

// Register `i` of product `j` of a tile's 64 columns `chunk`, zero beyond its last column.
__device__ uint4 values_of(const PackedMatrices& rows, int tile, int chunk, int j, int lane) {
  if (chunk >= rows.units) return make_uint4(0, 0, 0, 0);
  return *reinterpret_cast<const uint4*>(rows.data + size_t(tile) * rows.tile_bytes +
                                         size_t(chunk) * 2048 + j * 512 + lane * 16);
}

// Two codes at bits 0 and 16, their signs at bits 15 and 31; adds what they are off and what they
// stand for.
__device__ uint32_t encode(uint32_t pair, float inverse, double scale, double& off, double& norm) {
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float value = i == 0 ? low_value(pair) : high_value(pair);
    const int code = max(-127, min(127, __float2int_rn(value * inverse)));
    const double error = double(value) - code * scale;
    off += error * error;
    norm += double(value) * double(value);
    word |= (uint32_t(abs(code)) | (code < 0 ? 0x8000u : 0u)) << (16 * i);
  }
  return word;
}

// The sum over the lanes that have the same row and over the warps, in a fixed order.
__device__ double row_sum(double value, double (&shared)[kWarps][8]) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  value += __shfl_xor_sync(0xffffffffu, value, 2);
  const int lane = int(threadIdx.x % kWarp);
  __syncthreads();
  if (lane % 4 == 0) shared[threadIdx.x / kWarp][lane / 4] = value;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += shared[w][lane / 4];
  return sum;
}

// `rounding`: of the two sums over K that are compared, relative to |w| |x|. The largest error of
// all tiles as the bits of a float.
__global__ void __launch_bounds__(kThreads)
    pack_head_kernel(PackedMatrices rows, PackedMatrices codes, uint8_t* data, float* scales,
                     double rounding, unsigned* error) {
  __shared__ unsigned largest[kTileRows];
  __shared__ double sums[kWarps][8];
  const int tile = int(blockIdx.x), lane = int(threadIdx.x % kWarp), g = lane / 4;
  if (threadIdx.x < kTileRows) largest[threadIdx.x] = 0;
  __syncthreads();
  float most[2] = {};
  for (int i = int(threadIdx.x / kWarp); i < rows.units * 4; i += kWarps) {
    const uint4 v = values_of(rows, tile, i / 4, i % 4, lane);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      most[r % 2] =
          fmaxf(most[r % 2], fmaxf(fabsf(low_value(words[r])), fabsf(high_value(words[r]))));
    }
  }
  for (int half = 0; half < 2; ++half) {
    atomicMax(&largest[g + 8 * half], __float_as_uint(most[half]));
  }
  __syncthreads();
  float scale[2], inverse[2];
  for (int half = 0; half < 2; ++half) {
    const float top = __uint_as_float(largest[g + 8 * half]);
    scale[half] = top / 127;
    inverse[half] = top > 0 ? 127 / top : 0;
  }
  double off[2] = {}, norm[2] = {};
  for (int i = int(threadIdx.x / kWarp); i < codes.units * 4; i += kWarps) {
    uint32_t words[4];
    for (int odd = 0; odd < 2; ++odd) {
      const uint4 v = values_of(rows, tile, i / 2, i % 2 * 2 + odd, lane);
      const uint32_t a[4] = {encode(v.x, inverse[0], scale[0], off[0], norm[0]),
                             encode(v.y, inverse[1], scale[1], off[1], norm[1]),
                             encode(v.z, inverse[0], scale[0], off[0], norm[0]),
                             encode(v.w, inverse[1], scale[1], off[1], norm[1])};
      words[2 * odd] = a[0] | __byte_perm(a[1], 0, 0x2301);
      words[2 * odd + 1] = a[2] | __byte_perm(a[3], 0, 0x2301);
    }
    *reinterpret_cast<uint4*>(data + size_t(tile) * codes.tile_bytes + i * 512 + lane * 16) =
        make_uint4(words[0], words[1], words[2], words[3]);
  }
  for (int half = 0; half < 2; ++half) {
    const double d = sqrt(row_sum(off[half], sums)), w = sqrt(row_sum(norm[half], sums));
    if (threadIdx.x >= kWarp || lane % 4 != 0) continue;
    scales[tile * kTileRows + g + 8 * half] = scale[half];
    if (scale[half] == 0) continue;
    const double own = (d + rounding * (w + d)) / double(scale[half]) * (1 + 1e-6);
    atomicMax(error, __float_as_uint(float(own)));
  }
}

PackedMatrices layout_of_codes(const PackedMatrices& rows) {
  PackedMatrices w = rows;
  w.units = (rows.cols + Int8Unit::kInputs - 1) / Int8Unit::kInputs;
  w.unit_bytes = Int8Unit::kBytes;
  w.tile_bytes = uint32_t(w.units * w.unit_bytes);
  w.units_per_slice = (w.units + kMaxSlices - 1) / kMaxSlices;
  w.slices = (w.units + w.units_per_slice - 1) / w.units_per_slice;
  return w;
}

// A tensor core adds 16 products and a sum, each cut off at 2^-23 of the largest or better; 18
// such errors a product are more than it makes. Of both sums.
double rounding_of(const PackedMatrices& rows, const PackedMatrices& codes) {
  const int products = std::max(rows.units_per_slice * 4, codes.units_per_slice * 8);
  return 2 * (18.0 * products + kMaxSlices + 4) * 0x1p-23;
}

size_t bytes_of(const PackedMatrices& w) {
  return size_t(w.tiles) * w.tile_bytes;
}

// Moves the rows and their factors from the card to pinned memory.
void move_to_host(const Uploads& to, Head& head) {
  const size_t bytes = bytes_of(head.rows);
  const size_t factors = size_t(head.rows.tiles) * kTileRows * sizeof(float);
  head.pinned = PinnedMemory(bytes + factors);
  auto* host = head.pinned.as<uint8_t>();
  CUDA_CHECK(cudaMemcpyAsync(host, head.rows.data, bytes, cudaMemcpyDeviceToHost, to.stream));
  CUDA_CHECK(
      cudaMemcpyAsync(host + bytes, head.rows.factors, factors, cudaMemcpyDeviceToHost, to.stream));
  CUDA_CHECK(cudaStreamSynchronize(to.stream));
  head.rows.data = host;
  head.rows.factors = reinterpret_cast<const float*>(host + bytes);
}

}  // namespace

bool has_codes(const Weight& w) {
  return w.use == Use::kHead && std::ranges::all_of(w.parts, [](const WeightPart& part) {
           return part.format == Format::kBF16 && part.input_scales == nullptr;
         });
}

std::shared_ptr<const void> upload_head(const Uploads& to, const Weight& host, bool on_host) {
  Arena temporary;
  const Uploads rows_to{to.device, to.stream, on_host ? temporary : to.arena, to.feed};
  auto head = std::make_shared<Head>();
  head->rows = *std::static_pointer_cast<const PackedMatrices>(
      pack_matrices(rows_to, host, /*halves=*/false));
  head->codes = layout_of_codes(head->rows);
  auto* data = static_cast<uint8_t*>(to.arena.allocate(bytes_of(head->codes)));
  auto* scales =
      static_cast<float*>(to.arena.allocate(size_t(head->codes.tiles) * kTileRows * sizeof(float)));
  head->codes.data = data;
  head->codes.factors = scales;
  const DeviceMemory error(sizeof(unsigned));
  CUDA_CHECK(cudaMemsetAsync(error.data(), 0, sizeof(unsigned), to.stream));
  pack_head_kernel<<<unsigned(head->rows.tiles), kThreads, 0, to.stream>>>(
      head->rows, head->codes, data, scales, rounding_of(head->rows, head->codes),
      error.as<unsigned>());
  CUDA_CHECK(cudaGetLastError());
  CUDA_CHECK(cudaMemcpyAsync(&head->error, error.data(), sizeof(float), cudaMemcpyDeviceToHost,
                             to.stream));
  CUDA_CHECK(cudaStreamSynchronize(to.stream));
  if (on_host) move_to_host(to, *head);
  return head;
}

}  // namespace nibble::cuda
