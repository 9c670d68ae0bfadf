// mla_attention: absorbed attention over the cached latents, and who computes expanded segments.
#pragma once

#include <atomic>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/expanded_attention.h"
#include "backend/cpu/mla_kernels.h"
#include "backend/cpu/rope.h"
#include "backend/cpu/workers.h"

namespace nibble {

class MlaAttention {
 public:
  explicit MlaAttention(Workers& workers)
      : workers_(workers), expanded_(workers), threads_(size_t(workers.size())) {}

  void run(Tensor q, const Weight& kv_b, const MlaShape& shape, const Batch& batch,
           const KvLayer& cache, const RopeTable& rope, Tensor out);

 private:
  struct Call {  // the arguments, and the rows of them that are being computed
    Tensor q, out;
    const Weight& kv_b;
    const MlaShape& shape;
    const Batch& batch;
    const KvLayer& cache;
    const RopeTable& rope;
    AttentionShape attention;
    SpanFunction* attend_span;
    int64_t first_row, num_rows;
  };
  struct Task {  // rows of one segment x heads x spans of positions
    const Segment* segment = nullptr;
    int64_t first_row = 0, last_row = 0;  // of the batch
    int first_head = 0, last_head = 0;
    int64_t first_span = 0, last_span = 0;
  };
  struct Thread {
    Scratch<float> records{}, scores{}, factors{}, tops{}, values{};
    Scratch<const float*> rows{};
    Scratch<uint16_t> halves{};
    Scratch<int64_t> positions{};
  };

  void run_rows(const Call& call);
  void make_queries(const Call& call, int thread);
  void multiply_keys(const Call& call, int thread, int64_t head, int64_t first, int64_t last);
  bool balanced(int64_t groups);
  void make_tasks(const Call& call);
  void attend(const Call& call, const Task& task, Thread& memory);
  void merge_spans(const Call& call, int64_t query);
  void make_outputs(const Call& call, int thread);
  AttentionSums partial(const Call& call, int64_t query, int64_t span) const;

  Workers& workers_;
  ExpandedAttention expanded_;
  std::vector<Thread> threads_;
  std::vector<Task> tasks_;
  std::vector<int64_t> loads_;  // of the threads, in positions
  std::atomic<size_t> next_task_{0};
  bool split_spans_ = false;
  int64_t max_spans_ = 0;
  // Query i of the rows at hand is (row i / heads, head i % heads).
  Scratch<float> queries_;   // [queries, padded(record_dim)]: latent part, then rotated rope part
  Scratch<float> latents_;   // [queries, padded(latent_dim)]
  Scratch<float> partials_;  // with split spans: sums of [queries, max_spans_]
};

}  // namespace nibble
