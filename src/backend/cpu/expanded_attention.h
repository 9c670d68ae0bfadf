// mla_attention of a segment that is `expanded`: keys and values are made of the records first, so
// that a query is multiplied by 256 values of a position instead of 576, and sums 256 instead of
// 512.
#pragma once

#include <atomic>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/mla_kernels.h"
#include "backend/cpu/rope.h"
#include "backend/cpu/workers.h"

namespace nibble {

class ExpandedAttention {
 public:
  struct Call {
    Tensor q, out;  // of the batch
    const Weight& kv_b;
    const MlaShape& shape;
    const Segment& segment;
    const RecordPages pages;
    const RopeTable& rope;
  };

  explicit ExpandedAttention(Workers& workers)
      : workers_(workers), threads_(size_t(workers.size())) {}

  // Whether heads are whole vectors and panels.
  static bool takes(const MlaShape& shape) {
    return shape.nope_dim % kPanelRows == 0 && shape.rope_dim % 16 == 0 &&
           shape.value_dim % 16 == 0 && shape.latent_dim % 16 == 0;
  }

  void run(const Call& call);

 private:
  struct Slab {  // positions whose keys and values are at hand
    int64_t first = 0, last = 0;
  };
  struct Task {
    int head = 0;
    int64_t first_row = 0, last_row = 0;  // of the segment
  };
  struct Thread {
    Scratch<float> latents{}, expanded{}, queries{}, records{}, scores{}, factors{}, sums{};
    Scratch<const float*> rows{};
    Scratch<uint16_t> halves{};
    Scratch<int64_t> positions{};
  };

  KvLayer layer_of_head(int64_t head) const;
  void expand(const Call& call, const Slab& slab, int thread);
  void expand_block(const Call& call, const Slab& slab, int64_t first, int64_t head, int thread,
                    const InputRows& inputs);
  void attend(const Call& call, const Slab& slab, const Task& task, Thread& memory);

  Workers& workers_;
  std::vector<Thread> threads_;
  std::vector<Task> tasks_;
  std::atomic<size_t> next_task_{0};
  AttentionShape attention_{};
  SpanFunction* attend_span_ = nullptr;
  KvLayer layer_{};             // of head 0's slab: records [value | key without position | key]
  std::vector<int32_t> pages_;  // each slab lies where the first does
  Scratch<uint8_t> records_;    // [heads] pages of layer_
  Scratch<float> tops_, sums_;  // [heads, rows]
  Scratch<float> values_;       // [heads, rows, value_dim]
};

}  // namespace nibble
