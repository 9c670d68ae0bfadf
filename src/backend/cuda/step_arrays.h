// The batch of a step as kernels read it: plain arrays at addresses that stay the same from step to
// step, so that a recorded step finds the next batch where the last one was.
#pragma once

#include <cstdint>

#include "backend/batch.h"
#include "backend/cuda/staging.h"

namespace nibble::cuda {

// Passed to kernels by value.
struct StepView {
  const int32_t* tokens = nullptr;       // [T]; -1 - i: chosen[i]
  const int32_t* positions = nullptr;    // [T] of each row in its sequence
  const int32_t* row_segment = nullptr;  // [T] which segment a row is of
  const Segment* segments = nullptr;     // [S]
  const int32_t* logit_rows = nullptr;   // [R]
  const int32_t* pages = nullptr;        // page tables, one after another
  const int32_t* chosen = nullptr;       // see Batch

  // Sizes of the arrays. A grid may depend on these and on nothing else of the batch.
  int rows = 0;
  int num_segments = 0;
  int num_logit_rows = 0;
  bool is_decode = false;  // one row a segment, none of them expanded
  // The longest context + rows of a segment, rounded up, at least 512: a bound on positions for
  // grids, equal for all steps that replay one record.
  int length_bound = 0;
};

struct Context;

class StepArrays {
 public:
  // Brings the batch to the card, as an operation like others. Growing to a larger batch than any
  // before waits for the card and moves the arrays.
  void fill(const Batch& batch, const Context& context);

  const StepView& view() const { return view_; }
  // Rises when the arrays move.
  int generation() const { return generation_; }

 private:
  void grow(const Batch& batch);
  size_t bytes() const;  // for batches of the capacity

  Staging staging_;
  DeviceMemory memory_;
  size_t row_capacity_ = 0, page_capacity_ = 0;
  StepView view_;
  int generation_ = 0;
};

}  // namespace nibble::cuda
