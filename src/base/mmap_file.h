// A file's bytes, mapped read-only for the object's lifetime.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>

namespace nibble {

class MmapFile {
 public:
  // Throws Error that names the file: missing, not a regular file, unreadable, empty.
  explicit MmapFile(const std::filesystem::path& path);
  ~MmapFile();
  MmapFile(const MmapFile&) = delete;
  MmapFile& operator=(const MmapFile&) = delete;

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace nibble
