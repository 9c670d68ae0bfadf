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

// The rows that are a stack's outputs.
struct Outputs {
  const Weight& weight;
  RowRange range;
  bool gated = false;  // panels of the two halves alternate

  int64_t half() const { return range.count / 2; }
  // With the padding between them.
  int64_t count() const {
    return gated ? (half() + kPanelRows - 1) / kPanelRows * 2 * kPanelRows : range.count;
  }
  // The row of matrix 0 that is lane `lane` of panel `panel`; -1 for padding.
  int64_t row(int64_t panel, int lane) const {
    if (!gated) {
      const int64_t n = panel * kPanelRows + lane;
      return n < range.count ? range.first + n : -1;
    }
    const int64_t n = panel / 2 * kPanelRows + lane;
    return n < half() ? range.first + panel % 2 * half() + n : -1;
  }
};

inline Outputs all_outputs(const Weight& weight) {
  return {weight, {0, weight.rows}, weight.use == Use::kGatedExperts};
}

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
bool fits_nvfp4(const Outputs& outputs);
// Whether the key rows of each head are NVFP4 of one part.
bool fits_nvfp4_keys(const Weight& weight);

// The shapes of the stacks below, without memory.
Panels nvfp4_panels(int64_t rows, int64_t cols);
Panels nvfp4_key_panels(const Weight& weight);
Panels int8_panels(const Weight& weight);

PanelStack pack_nvfp4(const Outputs& outputs, Packer& packer);
// kLatentUp: PackedWeight::keys.
PanelStack pack_nvfp4_keys(const Weight& weight, Packer& packer);
// kHead: also PackedWeight::largest_norm.
PanelStack pack_int8(const Weight& weight, Packer& packer);

}  // namespace nibble
