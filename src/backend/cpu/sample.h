// sample: the next token of every row, and log-probabilities. Rows are shared among the threads.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/workers.h"

namespace nibble {

class CpuSampler {
 public:
  explicit CpuSampler(Workers& workers) : workers_(workers), threads_(size_t(workers.size())) {}

  // Edits rows of logits while it works and restores them.
  void run(Tensor logits, const SampleBatch& batch, SampleResult out);

 private:
  struct Candidate {
    float logit = 0;
    int32_t id = 0;
    double weight = 0;  // e^((logit - best) / temperature)

    // In order of falling probability.
    bool operator<(const Candidate& other) const {
      return logit > other.logit || (logit == other.logit && id < other.id);
    }
  };
  struct Thread {
    Scratch<int32_t> ids{};
    std::vector<float> block_tops{}, saved{};
    std::vector<Candidate> candidates{};
  };

  struct Result {  // one row's
    int32_t* token = nullptr;
    float* logprobs = nullptr;
    int32_t* top_ids = nullptr;
  };

  static void sample_row(float* logits, int64_t vocab, const SampleBatch& batch,
                         const SampleRow& row, Thread& memory, Result out);
  static int32_t draw(const SampleRow& row, const float* logits, int64_t vocab, Thread& memory);
  static int32_t draw_by_mass(const SampleRow& row, const float* logits, int64_t vocab, float best,
                              Thread& memory);
  static int32_t draw_of(const SampleRow& row, double total, bool complete, Thread& memory);
  static size_t first_beyond(double mass, bool strictly, size_t count, Thread& memory, double* sum);
  static void weigh(const SampleRow& row, float best, Thread& memory);
  static void collect(const float* logits, int64_t vocab, float least, Thread& memory);
  static float bound_of_best(const float* logits, int64_t vocab, int64_t count, Thread& memory);
  static void keep_best(int64_t count, Thread& memory);

  Workers& workers_;
  std::vector<Thread> threads_;
};

}  // namespace nibble
