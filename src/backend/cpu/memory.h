// Memory of the CPU backend: pages straight from the system (huge ones where they pay), an arena
// for weights, and scratch that grows at first use and is kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace nibble {

// Zeroed memory of its own mapping, aligned to 4 KiB, or to 2 MiB and backed by huge pages where it
// is that large. Throws Error when there is none.
class PageMemory {
 public:
  explicit PageMemory(size_t bytes);
  ~PageMemory();
  PageMemory(const PageMemory&) = delete;
  PageMemory& operator=(const PageMemory&) = delete;

  uint8_t* data() const { return data_; }

 private:
  void* mapping_ = nullptr;
  size_t mapped_bytes_ = 0;
  uint8_t* data_ = nullptr;
};

// Packs weights one after another into large mappings, so that small matrices share huge pages.
// A mapping lives as long as any piece of it.
class Arena {
 public:
  // Aligned to 64 bytes.
  std::shared_ptr<uint8_t> allocate(size_t bytes);

 private:
  std::shared_ptr<PageMemory> chunk_;
  size_t chunk_bytes_ = 0;
  size_t used_bytes_ = 0;
};

// Grow-only array, aligned to 64 bytes. What it held is lost when it grows.
template <typename T>
class Scratch {
 public:
  T* fit(size_t count) {
    if (count > capacity_) {
      capacity_ = count + count / 2;
      memory_ = std::make_unique<PageMemory>(capacity_ * sizeof(T));
    }
    return data();
  }
  T* data() const { return memory_ ? reinterpret_cast<T*>(memory_->data()) : nullptr; }

 private:
  std::unique_ptr<PageMemory> memory_;
  size_t capacity_ = 0;
};

}  // namespace nibble
