// Workers: the threads of the CPU backend and what each owns, with the products they compute.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "backend/cpu/multiply.h"
#include "base/thread_pool.h"

namespace nibble {

// A contiguous share of a loop.
struct Share {
  int64_t first = 0;
  int64_t last = 0;

  bool empty() const { return first >= last; }
};

class Workers {
 public:
  // 0 threads: the machine's physical cores. `exact`: multiply() is multiply_exactly().
  Workers(int threads, bool exact);

  int size() const { return pool_.size(); }
  ThreadPool& pool() { return pool_; }
  // The instruction set of multiply().
  std::string instruction_set() const;
  // Whether multiply() rounds its inputs to BF16.
  bool rounds_inputs() const { return multiply_ != multiply_f32; }

  // Thread `thread`'s share of `count` items. Items of a group of `unit` stay together.
  Share share(int thread, int64_t count, int64_t unit = 1) const {
    const int64_t units = (count + unit - 1) / unit;
    return {units * thread / size() * unit, std::min(count, units * (thread + 1) / size() * unit)};
  }

  // Computes the product on the calling thread, which is number `thread`; rows in blocks that the
  // cache holds.
  void multiply(int thread, const Product& product);
  // The same, never rounding inputs.
  void multiply_exactly(int thread, const Product& product);

  // Runs body(thread) on all threads, or on the caller alone when there is little to do: `work` is
  // about the number of multiply-adds.
  template <typename Body>
  void run(int64_t work, Body&& body) {
    if (work < kWorthSharing) {
      for (int thread = 0; thread < size(); ++thread) body(thread);
    } else {
      pool_.run(body);
    }
  }

 private:
  static constexpr int64_t kWorthSharing = 24 << 10;  // about a microsecond of one core

  void multiply_in_blocks(MultiplyFunction function, int thread, const Product& product);

  ThreadPool pool_;
  MultiplyFunction multiply_;
  std::vector<Scratch<uint32_t>> pairs_;
};

}  // namespace nibble
