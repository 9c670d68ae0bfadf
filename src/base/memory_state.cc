#include "base/memory_state.h"

#include <fstream>
#include <string>

namespace nibble {

MemoryState host_memory() {
  MemoryState state;
  std::ifstream file("/proc/meminfo");
  std::string key;
  int64_t kilobytes = 0;
  for (std::string rest; file >> key >> kilobytes; std::getline(file, rest)) {
    if (key == "MemTotal:") state.total_bytes = kilobytes * 1024;
    if (key == "MemAvailable:") state.free_bytes = kilobytes * 1024;
  }
  return state;
}

}  // namespace nibble
