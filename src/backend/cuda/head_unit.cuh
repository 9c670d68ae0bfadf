// A unit of INT8 codes as stream.cuh and the tiles take it, decoded to BF16, which is exact. Device
// code.
//
// Unit: 128 columns, two chunks of 64 in the order of columns of packed.h: products 2h and 2h + 1
// of chunk c, lane l at 1024 c + 512 h + 16 l, two words each: a0 and a1, then a2 and a3 (ptx.cuh).
// A word: the magnitudes of its first register's values at bits 0 and 16, their signs at bits 15
// and 31; of its second at bits 8 and 24, signs at bits 7 and 23.
#pragma once

#include "backend/cuda/fragments.cuh"

namespace nibble::cuda {

struct Int8Unit {
  static constexpr int kInputs = 128, kChunks = 2, kBytes = 2048, kProducts = 1;
  static constexpr int kStages = 2;

  struct Registers {
    uint32_t codes[2][4][2];  // chunk, product
  };

  template <typename... Policy>
  static __device__ __forceinline__ void fetch(uint8_t* shared, const uint8_t* unit, int lane,
                                               Policy... policy) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      copy_async_16(shared + i * 512 + lane * 16, unit + i * 512 + lane * 16, policy...);
    }
  }

  static __device__ __forceinline__ Registers read(const uint8_t* shared, int lane) {
    Registers r;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 q = *reinterpret_cast<const uint4*>(shared + i * 512 + lane * 16);
      uint32_t(*to)[2] = r.codes[i / 2] + i % 2 * 2;
      to[0][0] = q.x, to[0][1] = q.y, to[1][0] = q.z, to[1][1] = q.w;
    }
    return r;
  }

  static __device__ __forceinline__ void fragment(const Registers& r, int chunk, int j, int,
                                                  uint32_t (&a)[4]) {
    const uint32_t low = r.codes[chunk][j][0], high = r.codes[chunk][j][1];
    a[0] = decode(low), a[1] = decode(__byte_perm(low, 0, 0x2301));
    a[2] = decode(high), a[3] = decode(__byte_perm(high, 0, 0x2301));
  }

 private:
  // Magnitudes at bits 0 and 16 and signs at bits 15 and 31, to two BF16: 128 + m, less 128.
  static __device__ __forceinline__ uint32_t decode(uint32_t q) {
    const uint32_t raised = (q & 0x007f007fu) | 0x43004300u, offset = 0x43004300u;
    const __nv_bfloat162 m = __hsub2(reinterpret_cast<const __nv_bfloat162&>(raised),
                                     reinterpret_cast<const __nv_bfloat162&>(offset));
    return reinterpret_cast<const uint32_t&>(m) ^ (q & 0x80008000u);
  }
};

}  // namespace nibble::cuda
