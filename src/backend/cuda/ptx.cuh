// The instructions that CUDA C++ has no word for: dependent launch, asynchronous copies, matrix
// fragments and tensor-core products. Device code.
//
// Fragments of mma m16n8k16, in lane l with g = l / 4 and t = l % 4, two values a register:
//   A [16 x 16] row-major  a0: (g, 2t)  a1: (g + 8, 2t)  a2: (g, 2t + 8)  a3: (g + 8, 2t + 8)
//   B [16 x 8]  k x n      b0: (2t, g)  b1: (2t + 8, g)            (each with its neighbour in k)
//   C [16 x 8]             c0, c1: (g, 2t), (g, 2t + 1)   c2, c3: (g + 8, 2t), (g + 8, 2t + 1)
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace nibble::cuda {

// Waits until the kernels before this one have ended and what they wrote can be read.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may begin now, as far as there is room: it can fetch its weights meanwhile.
__device__ __forceinline__ void let_successor_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Computes a value here: what only weights give, the compiler would otherwise load and compute
// after a wait that stands between.
__device__ __forceinline__ void compute_now(uint32_t& value) {
  asm volatile("" : "+r"(value));
}
__device__ __forceinline__ void compute_now(int& value) {
  asm volatile("" : "+r"(value));
}
__device__ __forceinline__ void compute_now(float& value) {
  asm volatile("" : "+f"(value));
}

// Counts from 0 to `last`, then again from 0; returns what was there. What atomicAdd returns, the
// assembler passes through a shuffle, and so waits for it at once.
__device__ __forceinline__ unsigned take_ticket(unsigned* counter, unsigned last) {
  unsigned before;
  asm volatile("atom.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(last));
  return before;
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return uint32_t(__cvta_generic_to_shared(shared));
}

// Copies 16 bytes, zeros where `valid` is not set, past L1. Both addresses aligned to 16.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

// How L2 keeps what is copied. What a step reads once should leave it before what every layer
// needs: activations, and the kernels themselves, which otherwise come from memory each time.
struct L2Policy {
  uint64_t bits;

  static __device__ __forceinline__ L2Policy read_once() {
    L2Policy policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy.bits));
    return policy;
  }
  static __device__ __forceinline__ L2Policy read_again() {
    L2Policy policy;
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy.bits));
    return policy;
  }
};

// Only where it has been tried: of such a copy to an address that is a sum of which one part is
// uniform, ptxas of CUDA 13.0 makes an illegal instruction. The minimum, the address itself, keeps
// it from seeing the sum.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
#define NIBBLE_L2_HINT 1
#else
#define NIBBLE_L2_HINT 0
#endif
__device__ __forceinline__ uint32_t whole_shared_address(const void* shared) {
  uint32_t address;
  asm("min.u32 %0, %1, 0x7fffffff;" : "=r"(address) : "r"(shared_address(shared)));
  return address;
}

// To an address that whole_shared_address() gave, or so many bytes from there.
__device__ __forceinline__ void copy_async_16(uint32_t shared, const void* global,
                                              L2Policy policy) {
#if NIBBLE_L2_HINT
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(shared),
               "l"(global), "l"(policy.bits)
               : "memory");
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
#endif
}
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, L2Policy policy) {
  copy_async_16(whole_shared_address(shared), global, policy);
}

// Copies 4 bytes.
__device__ __forceinline__ void copy_async_4(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global)
               : "memory");
}
__device__ __forceinline__ void copy_async_4(uint32_t shared, const void* global, L2Policy policy) {
#if NIBBLE_L2_HINT
  asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], 4, %2;" ::"r"(shared),
               "l"(global), "l"(policy.bits)
               : "memory");
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global) : "memory");
#endif
}
__device__ __forceinline__ void copy_async_4(void* shared, const void* global, L2Policy policy) {
  copy_async_4(whole_shared_address(shared), global, policy);
}
#undef NIBBLE_L2_HINT

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `pending` of the committed groups of this thread are under way.
template <int pending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// The same of a number up to `most` that is constant once loops are unrolled.
template <int most>
__device__ __forceinline__ void wait_for_copies_but(int pending) {
  if constexpr (most > 0) {
    if (pending < most) return wait_for_copies_but<most - 1>(pending);
  }
  wait_for_copies<most>();
}

// A weight that is read once: past L1.
__device__ __forceinline__ uint4 load_streaming_16(const void* global) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(global));
  return v;
}

#if __CUDA_ARCH__ >= 900
// Brings `bytes`, a multiple of 16, to L2, by one thread. Aligned to 16.
__device__ __forceinline__ void prefetch_bulk(const void* global, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}
#endif

// What other blocks wrote before they changed *from can be read after it.
__device__ __forceinline__ int load_acquire(const int* from) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

// Four 8 x 8 matrices of 16-bit values; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices_4(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared))
               : "memory");
}

__device__ __forceinline__ void load_matrices_4_transposed(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared))
               : "memory");
}

__device__ __forceinline__ void load_matrices_2(uint32_t (&r)[2], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared))
               : "memory");
}

// c += a b, 16 x 8 x 16.
__device__ __forceinline__ void multiply_bf16(float (&c)[4], const uint32_t (&a)[4],
                                              const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void multiply_f16(float (&c)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Clusters: blocks that reach each other's shared memory (sm_90 on). That all are there, and have
// published their barriers, but nothing of what else they wrote.
__device__ __forceinline__ void arrive_at_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

}  // namespace nibble::cuda
