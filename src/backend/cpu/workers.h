// Workers: the threads of the CPU backend and what each owns, with the products they compute.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "backend/cpu/instruction_sets.h"
#include "backend/cpu/mla_kernels.h"
#include "backend/cpu/multiply.h"
#include "backend/cpu/pieces.h"
#include "base/tensor.h"
#include "base/thread_pool.h"

namespace nibble {

// A product of so many rows is worth decoding its panels for, on any machine.
inline constexpr int64_t kWideRows = 24;

class Workers {
 public:
  // 0 threads: the machine's physical cores. `exact`: never rounds inputs.
  explicit Workers(int threads, bool exact = false);

  int size() const { return pool_.size(); }
  ThreadPool& pool() { return pool_; }
  // The instruction sets of products.
  std::string instruction_set() const;

  // The best kernel for a product of `rows` rows and panels of this format.
  const Kernel& kernel(PanelFormat format, int64_t rows) const {
    const Kernel& wide = wide_kernels_[size_t(format)];
    return rows < wide.least_rows ? kernels_[size_t(format)] : wide;
  }
  // Backend::wide_rows
  int64_t wide_rows() const;
  // The most exact one: never rounds to BF16.
  const Kernel& exact_kernel(PanelFormat format) const { return exact_kernels_[size_t(format)]; }

  // By what attention multiplies, absorbed and expanded: it rounds queries and probabilities to
  // BF16 where products with BF16 weights round their inputs, few rows' or many's.
  AttentionProducts attention_products() const {
    return kernels_[size_t(PanelFormat::kBF16)].input == InputFormat::kBF16
               ? AttentionProducts::kBF16Dots
               : AttentionProducts::kF32;
  }
  AttentionProducts expanded_attention_products() const {
    const Kernel& wide = wide_kernels_[size_t(PanelFormat::kBF16)];
    return wide.multiplies_tiles ? AttentionProducts::kBF16Tiles : attention_products();
  }

  // Thread `thread`'s share of `count` items. Items of a group of `unit` stay together.
  Share share(int thread, int64_t count, int64_t unit = 1) const {
    const int64_t units = (count + unit - 1) / unit;
    return {units * thread / size() * unit, std::min(count, units * (thread + 1) / size() * unit)};
  }

  // Items of a loop to be taken in pieces until the next call: about kPieceBytes of what a thread
  // reads, whole groups, and several for each thread.
  Pieces& deal(int64_t count, int64_t item_bytes, int64_t group = 1) {
    constexpr int64_t kPieceBytes = 384 << 10, kLeastPieces = 4;  // of a thread
    const int64_t most = count / (kLeastPieces * size());
    const int64_t piece = std::min(kPieceBytes / std::max<int64_t>(item_bytes, 1), most);
    pieces_.deal(count, std::max<int64_t>(piece / group, 1) * group);
    return pieces_;
  }

  // Memory of thread `thread` for input rows, kept until it is asked for again.
  uint8_t* input_memory(int thread, int64_t bytes, int slot = 0) {
    return threads_[size_t(thread)].inputs[slot].fit(size_t(bytes));
  }
  // The rows of `x` as the kernel reads them, made by the calling thread, which is number `thread`,
  // in its input memory; x itself where that is what the kernel reads.
  InputRows make_inputs(int thread, const Kernel& kernel, Tensor x, const float* factors = nullptr);

  // Computes the product on the calling thread, which is number `thread`; rows in blocks that the
  // cache holds.
  void multiply(int thread, const Kernel& kernel, const Product& product);

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

  struct Thread {
    Scratch<uint8_t> inputs[2]{}, kernel{};
  };

  InstructionSets sets_;
  Kernel kernels_[kPanelFormats];
  Kernel wide_kernels_[kPanelFormats];
  Kernel exact_kernels_[kPanelFormats];
  ThreadPool pool_;
  Pieces pieces_;
  std::vector<Thread> threads_;
};

}  // namespace nibble
