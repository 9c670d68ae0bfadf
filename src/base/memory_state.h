// How much memory a machine has, and how much of it new allocations can have now.
#pragma once

#include <cstdint>

namespace nibble {

struct MemoryState {
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;
};

// Of this host: MemTotal and MemAvailable of /proc/meminfo; zeros where there is none.
MemoryState host_memory();

}  // namespace nibble
