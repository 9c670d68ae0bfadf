#include "apps/dry_run.h"

#include <malloc.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "apps/terminal.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// The bytes after "name:" in a file of /proc; 0 without it.
int64_t kilobytes_of(const char* file, const std::string& name) {
  std::ifstream lines(file);
  std::string word;
  int64_t value = 0;
  while (lines >> word) {
    if (word == name + ":" && lines >> value) return value * 1024;
  }
  return 0;
}

// Free room where `path` will be; 0: unknown.
int64_t free_bytes(const fs::path& path) {
  fs::path folder = fs::absolute(path);
  std::error_code failed;
  while (!fs::exists(folder, failed) && folder.has_relative_path()) folder = folder.parent_path();
  const fs::space_info space = fs::space(folder, failed);
  return failed ? 0 : int64_t(space.available);
}

std::string size_text(int64_t bytes) {
  return bytes < 1'000'000'000 ? format_number(double(bytes) / 1e6, 1) + " MB"
                               : format_number(double(bytes) / 1e9, 2) + " GB";
}

}  // namespace

void return_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 20);
#endif
}

void print_estimate(const RunEstimate& e, const fs::path& target, const fs::path& spill) {
  const int64_t held = kilobytes_of("/proc/self/status", "RssAnon");
  std::vector<std::vector<std::string>> rows = {{"will take", "", "there is", "for"}};
  rows.push_back({"memory", size_text(held + e.memory_bytes),
                  size_text(kilobytes_of("/proc/meminfo", "MemAvailable")),
                  "the most, at " + e.peak});
  rows.push_back({"disk", size_text(e.target_bytes), size_text(free_bytes(target)),
                  fs::absolute(target).string()});
  if (e.spill_bytes > 0) {
    rows.push_back({"disk", size_text(e.spill_bytes), size_text(free_bytes(spill)),
                    "activations in " + fs::absolute(spill).string() + ", while it runs"});
  }
  rows.push_back({"writes", size_text(e.written_bytes), "", "in all"});
  std::printf("%s", table(rows).c_str());
}

}  // namespace nibble
