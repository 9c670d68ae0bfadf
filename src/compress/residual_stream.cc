#include "compress/residual_stream.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "base/error.h"

namespace nibble {

ResidualStream::ResidualStream(int64_t rows, int64_t cols, const std::filesystem::path& spill)
    : cols_(cols), folder_(spill) {
  if (spill.empty()) {
    values_.resize(size_t(rows * cols));
    return;
  }
  std::string path = (spill / "nibble-spill-XXXXXX").string();
  descriptor_ = ::mkstemp(path.data());
  if (descriptor_ < 0) {
    throw Error("--spill " + spill.string() +
                ": no file can be made there: " + std::strerror(errno));
  }
  ::unlink(path.c_str());
  errno = ::posix_fallocate(descriptor_, 0, std::max<int64_t>(1, rows * cols * 4));
  if (errno != 0) {
    const std::string why = std::strerror(errno);
    ::close(descriptor_);
    throw Error("--spill " + spill.string() + ": no room for " + std::to_string(rows * cols * 4) +
                " bytes: " + why);
  }
}

ResidualStream::~ResidualStream() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void ResidualStream::read(int64_t first_row, int64_t count, float* out) const {
  if (descriptor_ < 0) {
    std::copy_n(values_.data() + first_row * cols_, count * cols_, out);
    return;
  }
  char* to = reinterpret_cast<char*>(out);
  int64_t offset = first_row * cols_ * 4, left = count * cols_ * 4;
  while (left > 0) {
    const ssize_t n = ::pread(descriptor_, to, size_t(left), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw Error("--spill " + folder_.string() + ": cannot be read back");
    to += n;
    offset += n;
    left -= n;
  }
}

void ResidualStream::write(int64_t first_row, int64_t count, const float* rows) {
  if (descriptor_ < 0) {
    float* to = values_.data() + first_row * cols_;
    if (rows != to) std::copy_n(rows, count * cols_, to);
    return;
  }
  const char* from = reinterpret_cast<const char*>(rows);
  int64_t offset = first_row * cols_ * 4, left = count * cols_ * 4;
  while (left > 0) {
    const ssize_t n = ::pwrite(descriptor_, from, size_t(left), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw Error("--spill " + folder_.string() + ": cannot be written");
    from += n;
    offset += n;
    left -= n;
  }
}

const float* ResidualStream::rows(int64_t first_row, int64_t count,
                                  KeptArray<float>& memory) const {
  if (descriptor_ < 0) return values_.data() + first_row * cols_;
  float* rows = memory.fit(size_t(count * cols_));
  read(first_row, count, rows);
  return rows;
}

float* ResidualStream::place(int64_t first_row, int64_t count, KeptArray<float>& memory) {
  if (descriptor_ < 0) return values_.data() + first_row * cols_;
  return memory.fit(size_t(count * cols_));
}

}  // namespace nibble
