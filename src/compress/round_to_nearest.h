// Rounding as ModelOpt's exporter does it, without calibration.
#pragma once

#include "base/thread_pool.h"
#include "compress/encoded.h"
#include "compress/linears.h"

namespace nibble {

// The largest magnitude of `rows` x `cols` values. Throws Error that names `name`: a value is not
// finite.
float checked_amax(const std::string& name, const float* values, int64_t rows, int64_t cols);

// NVFP4 with tensor scale amax / 2688, or FP8 E4M3 with amax / 448; rows are read twice, a few at a
// time. Throws Error that names the linear: a value is not finite.
Encoded round_to_nearest(const Weight& weight, const LinearGroup& group, Precision precision,
                         ThreadPool& pool);
// The same for a matrix in memory.
Encoded round_to_nearest(const float* values, int64_t rows, int64_t cols, Precision precision,
                         ThreadPool& pool);

}  // namespace nibble
