// Packer: what the files that pack weights share.
#pragma once

#include "backend/cpu/pack.h"
#include "base/check.h"

namespace nibble {

// Rows of each matrix of a stack.
struct RowRange {
  int64_t first = 0;
  int64_t count = 0;
};

struct PartRow {
  const WeightPart* part;
  int64_t row;
};

// Row `row` of the stack.
inline PartRow find_row(const Weight& weight, int64_t row) {
  for (const WeightPart& part : weight.parts) {
    if (row < part.rows) return {&part, row};
    row -= part.rows;
  }
  CHECK(false, "a row beyond %s", weight.name.c_str());
  return {};
}

// Gives a weight's packed form its memory.
class Packer {
 public:
  Packer(Arena& arena, ThreadPool& pool, PackedWeight& owner)
      : arena_(arena), pool_(pool), owner_(owner) {}

  ThreadPool& pool() { return pool_; }
  PackedWeight& owner() { return owner_; }

  uint8_t* allocate(int64_t bytes) {
    owner_.memory.push_back(arena_.allocate(size_t(bytes)));
    return owner_.memory.back().get();
  }

  // `matrices` of the shape of `panels`.
  PanelStack new_stack(const Panels& panels, int64_t matrices) {
    PanelStack stack{.first = panels, .matrices = matrices};
    stack.first.data = allocate(matrices * stack.first.bytes());
    return stack;
  }

  float* new_scales(PanelStack& stack) {
    const int64_t count = stack.matrices * stack.first.count() * kPanelRows;
    float* scales = reinterpret_cast<float*>(allocate(count * int64_t(sizeof(float))));
    stack.first.row_scales = scales;
    return scales;
  }

 private:
  Arena& arena_;
  ThreadPool& pool_;
  PackedWeight& owner_;
};

// Whether NVFP4 panels can hold these rows: all parts are NVFP4, and rows of one panel have the
// same input scales.
bool fits_nvfp4(const Weight& weight, const RowRange& range);
// Whether the key rows of each head are NVFP4 of one part.
bool fits_nvfp4_keys(const Weight& weight);

PanelStack pack_nvfp4(const Weight& weight, const RowRange& range, Packer& packer);
// kLatentUp: PackedWeight::keys.
PanelStack pack_nvfp4_keys(const Weight& weight, Packer& packer);
// kHead: also PackedWeight::largest_norm.
PanelStack pack_int8(const Weight& weight, Packer& packer);

}  // namespace nibble
