// Head: logits from INT8 rows, and from the stored rows where they matter (Use::kHead, backend.h).
//
// Row n of the head is w = scale q + d, q of 8-bit integers. With the input x rounded to x', the
// logit of the integers is off by at most
//   |w x - scale q x'| <= |d| |x| + |scale q| |x - x'| + rounding of the sums.
// |d| is kept a row, the largest |scale q| for all. A logit can be its row's largest if, with this
// bound added, it reaches the best of all logits with theirs subtracted; these candidates are
// computed again in FP32 from the stored rows, or the whole row where they are too many.
#pragma once

#include "backend/backend.h"
#include "backend/cpu/workers.h"

namespace nibble {

class Head {
 public:
  explicit Head(Workers& workers) : workers_(workers), threads_(size_t(workers.size())) {}

  void run(Tensor x, const Weight& w, Tensor out);

 private:
  struct Candidate {
    int32_t row = 0;  // of the batch
    int32_t output = 0;
  };
  struct Thread {
    std::vector<float> floors{};  // [T]: the best logit less its bound
    std::vector<int32_t> counts{};
    std::vector<Candidate> candidates{};  // at most kHeadCandidates + 1 a row
    std::vector<float> weights{};         // a stored row
  };
  struct Bound {  // of a logit of a row: error * row_norm + rest
    float row_norm = 0;
    float rest = 0;
  };

  void bound_inputs(Tensor x, const PackedWeight& head, InputFormat format, InputRows inputs);
  void find_floors(int thread, const Panels& panels, Share share, Tensor out);
  void find_candidates(int thread, const Panels& panels, Share share, Tensor out);
  void compute_again(int thread, Tensor x, const Weight& w, Share share, Tensor out);

  Workers& workers_;
  std::vector<Thread> threads_;
  std::vector<Bound> bounds_;    // [T]
  std::vector<int64_t> counts_;  // [T]: candidates
};

}  // namespace nibble
