// KeptArray: memory that grows and is kept, for what is made anew for every slab: fresh memory
// costs more than what is written to it.
#pragma once

#include <cstddef>
#include <memory>

namespace nibble {

template <typename T>
class KeptArray {
 public:
  // `count` elements of any value; what it held is lost when it grows.
  T* fit(size_t count) {
    if (count > capacity_) {
      data_.reset();  // first: not both at once
      data_ = std::make_unique_for_overwrite<T[]>(count);
      capacity_ = count;
    }
    return data_.get();
  }
  T* data() const { return data_.get(); }

 private:
  std::unique_ptr<T[]> data_;
  size_t capacity_ = 0;
};

}  // namespace nibble
