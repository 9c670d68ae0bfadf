// Barriers in shared memory, and the bulk copies of sm_90 and later that arrive at them. Device
// code.
//
// A barrier of `count` arrivals goes through phases 0, 1, 0, ...: a phase ends when all have
// arrived and the bytes that it expects have come. Waiting for a phase that has ended returns at
// once, and a new barrier passes for one whose phase 1 has ended.
#pragma once

#include "backend/cuda/ptx.cuh"

namespace nibble::cuda {

// By one thread, before all threads meet; before bulk copies, publish_barriers(), too.
__device__ __forceinline__ void start_barrier(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
}
__device__ __forceinline__ void arrive_at(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives once this thread's copy_async_16()s so far have come.
__device__ __forceinline__ void arrive_with_copies(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// Waits for the end of the phase of this parity, 0 for the first.
__device__ __forceinline__ void wait_for_phase(uint64_t* barrier, int parity) {
#if __CUDA_ARCH__ >= 900
#define NIBBLE_TRY "mbarrier.try_wait.parity.shared.b64"
#else
#define NIBBLE_TRY "mbarrier.test_wait.parity.shared.b64"
#endif
  asm volatile("{\n.reg .pred p;\nNIBBLE_AGAIN_%=:\n" NIBBLE_TRY
               " p, [%0], %1;\n@p bra NIBBLE_DONE_%=;\nbra "
               "NIBBLE_AGAIN_%=;\nNIBBLE_DONE_%=:\n}" ::"r"(shared_address(barrier)),
               "r"(parity)
               : "memory");
#undef NIBBLE_TRY
}

#if __CUDA_ARCH__ >= 900

__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

// *shared = value in the shared memory of block `rank` of the cluster, whose barrier counts it: no
// fence, which would wait for all that the multiprocessor has under way.
__device__ __forceinline__ void send_to_block(uint32_t* shared, uint64_t* barrier, unsigned rank,
                                              uint32_t value) {
  asm volatile(
      "{.reg .b32 to, at;\n mapa.shared::cluster.u32 to, %0, %2;\n mapa.shared::cluster.u32 at, "
      "%1, "
      "%2;\n st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [to], %3, [at];}" ::"r"(
          shared_address(shared)),
      "r"(shared_address(barrier)), "r"(rank), "r"(value)
      : "memory");
}

// What this thread sees in the card's memory, its bulk copies see from here on.
__device__ __forceinline__ void see_in_bulk_copies() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

// What this thread has read of shared memory, bulk copies may write over once it has arrived at a
// barrier for which they wait.
__device__ __forceinline__ void let_bulk_copies_overwrite() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Copies `bytes`, a multiple of 16, both addresses aligned to 16, by one thread; the barrier's
// phase counts them as they come.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, int bytes,
                                          uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

#endif

}  // namespace nibble::cuda
