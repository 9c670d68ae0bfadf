// What this machine can do at best, measured: the denominators of every share that is reported.
#pragma once

#include "base/thread_pool.h"

namespace nibble {

// Bytes a second that the pool's threads read together from memory beyond the caches.
double measure_read_bandwidth(ThreadPool& pool);

// Floating-point operations a second of the pool's threads together, in the multiply-add of the
// instruction set that products use (Workers), from registers alone.
double measure_gemm_peak(ThreadPool& pool);

}  // namespace nibble
