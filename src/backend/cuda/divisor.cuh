// Quotients by a number that a launch knows, without the instructions of a division. Device code.
#pragma once

#include <cstdint>

namespace nibble::cuda {

// n / value for n < 2^32 / value: n times 2^32 / value, rounded up, is too large by less than
// n * value, which its high half does not show.
class Divisor {
 public:
  Divisor() = default;
  __host__ __device__ explicit Divisor(int value)
      : value_(value), factor_(0xffffffffu / uint32_t(value) + 1) {}

  __device__ __forceinline__ operator int() const { return value_; }
  __device__ __forceinline__ int quotient(int n) const {
    return value_ == 1 ? n : int(__umulhi(uint32_t(n), factor_));
  }

 private:
  int value_ = 1;
  uint32_t factor_ = 0;
};

__device__ __forceinline__ int quotient(int n, const Divisor& by) {
  return by.quotient(n);
}
__device__ __forceinline__ int quotient(int n, int by) {
  return n / by;
}

}  // namespace nibble::cuda
