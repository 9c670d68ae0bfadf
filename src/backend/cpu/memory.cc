#include "backend/cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <string>

#include "base/error.h"

namespace nibble {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kChunk = 8 * kHugePage;

size_t round_up(size_t value, size_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace

PageMemory::PageMemory(size_t bytes) {
  const bool huge = bytes >= kHugePage;
  const size_t size = round_up(std::max<size_t>(bytes, 1), kPage);
  mapped_bytes_ = huge ? size + kHugePage : size;
  mapping_ =
      mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping_ == MAP_FAILED) throw Error("out of memory: " + std::to_string(bytes) + " bytes");
  data_ = static_cast<uint8_t*>(mapping_);
  if (huge) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(mapping_);
    data_ += round_up(address, kHugePage) - address;
    madvise(data_, size, MADV_HUGEPAGE);
  }
}

PageMemory::~PageMemory() {
  munmap(mapping_, mapped_bytes_);
}

std::shared_ptr<uint8_t> Arena::allocate(size_t bytes) {
  const size_t size = round_up(std::max<size_t>(bytes, 1), 64);
  if (!chunk_ || used_bytes_ + size > chunk_bytes_) {
    chunk_bytes_ = round_up(std::max(size, kChunk), kHugePage);
    chunk_ = std::make_shared<PageMemory>(chunk_bytes_);
    used_bytes_ = 0;
  }
  uint8_t* data = chunk_->data() + used_bytes_;
  used_bytes_ += size;
  return {chunk_, data};
}

}  // namespace nibble
