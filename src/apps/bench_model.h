// Speed of the model alone at chosen context lengths: decode steps of a batch, prefill of a prompt.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "apps/runtime.h"
#include "model/glm_cost.h"

namespace nibble {

struct DecodePoint {
  int context = 0;  // tokens of each sequence before the first step
  int batch = 0;
};

struct DecodeSpeed {
  DecodePoint point{};
  double tokens_per_second = 0;
  double bytes_per_second = 0;    // weights and records that a step cannot do without
  double bandwidth_share = 0;     // of the read bandwidth measured right before; 0: unknown
  double experts_of_a_layer = 0;  // distinct ones of a step, the mean over layers and steps
};

struct PrefillSpeed {
  int prompt = 0;
  double tokens_per_second = 0;
  double flops_per_second = 0;  // attention counted in its expanded form
  double compute_share = 0;     // of the multiply-add peak; 0: unknown
};

// Uses the engine's cache, filled with random records; the engine must be idle. Rows feed random
// ids: sampling runs and its result is dropped, since greedy answers of random weights fall into
// loops that share experts.
class ModelBench {
 public:
  ModelBench(Runtime& runtime, const GlmCost& cost, const MachineLimits& limits);
  ~ModelBench();
  ModelBench(const ModelBench&) = delete;
  ModelBench& operator=(const ModelBench&) = delete;

  // The median of `repetitions`, each beside a measure of the read bandwidth. Nothing when the
  // cache or the model's length is too small.
  std::optional<DecodeSpeed> decode(DecodePoint point, int repetitions);
  // A prompt in chunks of --max-num-batched-tokens, the median of `repetitions`.
  std::optional<PrefillSpeed> prefill(int prompt, int repetitions);

 private:
  int64_t pages_of(int64_t tokens) const;
  Batch batch_of(DecodePoint point, int step);
  void fill_cache(int64_t num_pages);
  // As the engine does: on a card the next step begins before this one's tokens are read.
  void run_step(const Batch& batch);
  void finish_steps(size_t ahead = 0);  // all but `ahead`
  double distinct_experts(DecodePoint point);
  double step_bytes(DecodePoint point, int steps, double experts) const;

  Runtime& runtime_;
  const GlmCost cost_;
  const MachineLimits limits_;
  int64_t filled_pages_ = 0;
  std::mt19937 random_{1};
  SampleBatch rows_{};
  SampleResult result_{};
  std::array<std::vector<int32_t>, 2> tokens_{};  // of steps in turn
  size_t begun_ = 0, finished_ = 0;               // steps
};

}  // namespace nibble
