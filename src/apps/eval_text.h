// Perplexity, divergence from a base model and agreement with it, over counted tokens.
//
// Logits are taken a few rows at a time from all models side by side and never kept. With p the
// base model's distribution, q the judged one's, over the whole vocabulary, in nats:
//   nll = -ln q(target)      kl = sum_v p(v) (ln p(v) - ln q(v))      same: equal largest logits
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "apps/eval_samples.h"
#include "apps/runtime.h"

namespace nibble {

// Mean of what was added, and its standard error.
class Average {
 public:
  void add(double value) {
    ++count_;
    sum_ += value;
    squares_ += value * value;
  }
  int64_t count() const { return count_; }
  double mean() const { return count_ == 0 ? 0 : sum_ / double(count_); }
  double standard_error() const;

 private:
  int64_t count_ = 0;
  double sum_ = 0, squares_ = 0;
};

struct TextScore {
  Average nll{}, kl{}, same{};  // kl and same stay empty without a base
};

struct TextScores {
  TextScore model{};
  std::optional<TextScore> base{};  // its nll alone
  std::optional<TextScore> other{};
  TextScore difference{};  // other - model, token by token
};

// `base` and `other` may be null; all have the same vocabulary. `progress` (may be empty) is called
// with the share done. Throws Error that names a sample longer than a model's positions.
TextScores score_text(Runtime& model, Runtime* base, Runtime* other,
                      const std::vector<TextSample>& samples,
                      const std::function<void(double)>& progress);

}  // namespace nibble
