// What the card can do at best, measured.
#pragma once

#include "backend/backend.h"
#include "backend/cuda/launch.h"

namespace nibble::cuda {

// Read bandwidth from memory beyond L2, and the peak of BF16 mma.sync from registers.
MachineLimits measure_limits(const Context& context);

}  // namespace nibble::cuda
