// Products of warpgroups, for Hopper alone (sm_90a): 128 threads multiply 64 rows, their fragments
// in registers, by 64 or 128 columns in shared memory. Bit for bit the sums of mma m16n8k16. Device
// code.
#pragma once

#include <cstdint>

#include "backend/cuda/bulk.cuh"

namespace nibble::cuda {

// Where the columns' [k x n] operand lies: core matrices of 8 columns x 16 bytes (8 k), 128 bytes
// each, `k_stride` bytes from one to the next in k, neighbours in n one after another.
__device__ __forceinline__ uint64_t columns_at(const void* shared, int k_stride) {
  return uint64_t((shared_address(shared) & 0x3ffff) >> 4) | uint64_t(k_stride >> 4) << 16 |
         uint64_t(128 >> 4) << 32;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Registers written before may be read by the products that follow.
__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void end_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits for all of this warpgroup's products; `c` may be read then.
template <int columns>
__device__ __forceinline__ void wait_for_products(float (&c)[columns][4]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int n = 0; n < columns; ++n) {
    asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
  }
}

#define NIBBLE_SUMS(c) "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])

// c (+)= a b: 64 x 64 x 16, by a warpgroup; c is overwritten where `add` is 0.
__device__ __forceinline__ void multiply_async(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b,
                                               int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
      "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"
      : NIBBLE_SUMS(c[0]), NIBBLE_SUMS(c[1]), NIBBLE_SUMS(c[2]), NIBBLE_SUMS(c[3]),
        NIBBLE_SUMS(c[4]), NIBBLE_SUMS(c[5]), NIBBLE_SUMS(c[6]), NIBBLE_SUMS(c[7])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

// c (+)= a b: 64 x 128 x 16, by a warpgroup; c is overwritten where `add` is 0.
__device__ __forceinline__ void multiply_async(float (&c)[16][4], const uint32_t (&a)[4],
                                               uint64_t b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
      "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "
      "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
      "%62, %63"
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}\n"
      : NIBBLE_SUMS(c[0]), NIBBLE_SUMS(c[1]), NIBBLE_SUMS(c[2]), NIBBLE_SUMS(c[3]),
        NIBBLE_SUMS(c[4]), NIBBLE_SUMS(c[5]), NIBBLE_SUMS(c[6]), NIBBLE_SUMS(c[7]),
        NIBBLE_SUMS(c[8]), NIBBLE_SUMS(c[9]), NIBBLE_SUMS(c[10]), NIBBLE_SUMS(c[11]),
        NIBBLE_SUMS(c[12]), NIBBLE_SUMS(c[13]), NIBBLE_SUMS(c[14]), NIBBLE_SUMS(c[15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

#undef NIBBLE_SUMS

// A warpgroup's registers a thread from here on, of those that the block was launched with. All of
// its threads call it; taking waits until others have given enough.
template <int count>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace nibble::cuda
