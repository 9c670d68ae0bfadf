#include "base/mmap_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace nibble {

MmapFile::MmapFile(const std::filesystem::path& path) {
  const auto fail = [&](const std::string& what) { throw Error(path.string() + ": " + what); };
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(std::strerror(errno));
  struct stat status {};
  const bool regular = ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  if (regular && status.st_size > 0) {
    void* p = ::mmap(nullptr, size_t(status.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
    if (p != MAP_FAILED) {
      data_ = static_cast<const uint8_t*>(p);
      size_ = size_t(status.st_size);
    }
  }
  const int mmap_errno = errno;
  ::close(fd);
  if (!regular) fail("not a regular file");
  if (status.st_size == 0) fail("the file is empty");
  if (data_ == nullptr) fail(std::strerror(mmap_errno));
}

MmapFile::~MmapFile() {
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), size_);
}

}  // namespace nibble
