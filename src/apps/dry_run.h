// What a dry run of quantize or prune shows, and how the process handles memory so that it is true.
#pragma once

#include <filesystem>

#include "compress/run_estimate.h"

namespace nibble {

// From now on freed buffers of a megabyte or more go back to the system at once, so that the most
// memory taken is the most in use.
void return_freed_memory();

// Prints the estimate, what the process holds already added to its memory, beside the memory and
// disk that are free.
void print_estimate(const RunEstimate& estimate, const std::filesystem::path& target,
                    const std::filesystem::path& spill);

}  // namespace nibble
