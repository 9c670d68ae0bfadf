// Memory of the card and pinned memory of the host. One owner each; freed with it.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "backend/cuda/device.h"

namespace nibble::cuda {

// A block of the card's memory. Not zeroed.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  // Throws Error that says how much was asked for and how much is free.
  explicit DeviceMemory(size_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }

  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t size() const { return size_; }

 private:
  void swap(DeviceMemory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Host memory that the card copies from and to while the host goes on, and that kernels can read at
// the same address.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(size_t bytes);
  ~PinnedMemory();
  PinnedMemory(PinnedMemory&& other) noexcept { swap(other); }
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    swap(other);
    return *this;
  }

  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t size() const { return size_; }

 private:
  void swap(PinnedMemory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Weights' memory: many blocks out of few allocations, since each allocation of its own is rounded
// up to 2 MiB. Freed as a whole.
class Arena {
 public:
  // Aligned to 256 bytes.
  void* allocate(size_t bytes);

 private:
  struct Chunk {
    DeviceMemory memory{};
    size_t used = 0;
  };
  std::vector<Chunk> chunks_;
};

// Scratch memory of one operation at a time: whatever the last one left there is lost. It grows
// when an operation asks for more than any before it.
class Workspace {
 public:
  // At least `bytes`, aligned to 256. Growing waits for the card, and moves the workspace.
  void* fit(size_t bytes);
  template <typename T>
  T* fit_as(size_t count) {
    return static_cast<T*>(fit(count * sizeof(T)));
  }

  // Rises when the workspace moves.
  int generation() const { return generation_; }
  size_t size() const { return memory_.size(); }

 private:
  DeviceMemory memory_;
  int generation_ = 0;
};

}  // namespace nibble::cuda
