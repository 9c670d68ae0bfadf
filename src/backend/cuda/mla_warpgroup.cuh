// Warpgroup products of sm_90a: four warps together, BF16 to FP32, factors described to the
// hardware where they lie in shared memory. They run beside the warps until they are waited for. A
// warp of the group has 16 of the 64 rows of c, laid out as C fragments (ptx.cuh) of 8 columns
// each. Device code.
#pragma once

#include "backend/cuda/ptx.cuh"
#include "backend/cuda/tile.cuh"
#include "backend/cuda/warpgroup.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace nibble::cuda {

// Where 16-byte piece `piece` of a row lies: panels of 64 columns, rows of 128 bytes.
template <int kTileRows>
__device__ __forceinline__ bf16* panel_piece_at(bf16* tile, int row, int piece) {
  return tile + piece / 8 * (kTileRows * 64) + row * 64 + ((piece ^ row) % 8) * 8;
}

// Describes a tile to a warpgroup MMA: 128-byte swizzle, 1024 bytes from 8 rows to the next 8;
// `panel_bytes` from 64 columns to the next 64, where columns are not what is summed over.
__device__ __forceinline__ uint64_t describe(const bf16* at, uint32_t panel_bytes) {
  return uint64_t(1) << 62 | uint64_t(1024 >> 4) << 32 | uint64_t(panel_bytes >> 4) << 16 |
         (shared_address(at) >> 4 & 0x3fff);
}

template <int pending>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// The compiler knows that products change these, not that they do so until they are waited for.
template <int count>
__device__ __forceinline__ void settle(float (&c)[count][4]) {
#pragma unroll
  for (int n = 0; n < count; ++n) {
    asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
  }
}

#define NIBBLE_FOUR(c, n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define NIBBLE_SIXTEEN(c, n) \
  NIBBLE_FOUR(c, n), NIBBLE_FOUR(c, n + 1), NIBBLE_FOUR(c, n + 2), NIBBLE_FOUR(c, n + 3)

// c += a b over 16 of K, 64 x 64: both factors from shared memory, K in their rows. `keep`: 0
// starts from zero.
__device__ __forceinline__ void multiply_64(float (&c)[8][4], uint64_t a, uint64_t b, int keep) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %34, 0;"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, 0, 0;}"
      : NIBBLE_SIXTEEN(c, 0), NIBBLE_SIXTEEN(c, 4)
      : "l"(a), "l"(b), "r"(keep));
}

// c += a b, 64 x 256: a from registers, as the fragments of four warps; K across the rows of b.
__device__ __forceinline__ void multiply_256(float (&c)[32][4], const uint32_t (&a)[4],
                                             uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, "
      "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "
      "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "
      "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, "
      "%126, %127"
      "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 1;"
      : NIBBLE_SIXTEEN(c, 0), NIBBLE_SIXTEEN(c, 4), NIBBLE_SIXTEEN(c, 8), NIBBLE_SIXTEEN(c, 12),
        NIBBLE_SIXTEEN(c, 16), NIBBLE_SIXTEEN(c, 20), NIBBLE_SIXTEEN(c, 24), NIBBLE_SIXTEEN(c, 28)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// The same, 64 x 256: both from shared memory, K in their rows.
__device__ __forceinline__ void multiply_256(float (&c)[32][4], uint64_t a, uint64_t b, int keep) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %130, 0;"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, "
      "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "
      "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "
      "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, "
      "%126, %127"
      "}, %128, %129, p, 1, 1, 0, 0;}"
      : NIBBLE_SIXTEEN(c, 0), NIBBLE_SIXTEEN(c, 4), NIBBLE_SIXTEEN(c, 8), NIBBLE_SIXTEEN(c, 12),
        NIBBLE_SIXTEEN(c, 16), NIBBLE_SIXTEEN(c, 20), NIBBLE_SIXTEEN(c, 24), NIBBLE_SIXTEEN(c, 28)
      : "l"(a), "l"(b), "r"(keep));
}
#undef NIBBLE_SIXTEEN
#undef NIBBLE_FOUR

}  // namespace nibble::cuda

#endif
