#include "compress/token_weights.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

constexpr double kUncertainShare = 0.5;

}  // namespace

double uncertainty(const float* logits, int64_t count) {
  const float top = *std::max_element(logits, logits + count);
  double sum = 0, squares = 0;
  for (int64_t v = 0; v < count; ++v) {
    const double p = std::exp(logits[v] - top);
    sum += p;
    squares += p * p;
  }
  return 1 - squares / (sum * sum);
}

std::vector<float> measure_token_weights(LayerRunner& runner, ThreadPool& pool,
                                         const std::function<void(int layer)>& on_layer) {
  const int num_layers = runner.config().num_layers;
  const int64_t vocab = runner.config().vocab;
  runner.embed(nullptr);
  for (int l = 0; l < num_layers; ++l) {
    on_layer(l);
    runner.begin_layer(l);
    for (const Block block : {Block::kAttention, Block::kFeedForward}) {
      for (const Slab& slab : runner.tokens().slabs()) {
        runner.run(Version::kOriginal, block, slab, {}, /*advance=*/true, {});
      }
    }
  }
  on_layer(num_layers);
  runner.begin_head();
  std::vector<float> weights(size_t(runner.tokens().num_tokens()));
  for (const Slab& slab : runner.tokens().slabs()) {
    runner.run_head(slab, [&](int64_t first, int64_t rows, const std::vector<float>& logits) {
      pool.parallel_for(rows, [&](int64_t r) {
        weights[size_t(slab.first_row + first + r)] =
            float(uncertainty(logits.data() + r * vocab, vocab));
      });
    });
  }
  double mean = 0;
  for (const float u : weights) mean += u / double(weights.size());
  for (float& w : weights) {
    w = float(1 - kUncertainShare + (mean > 0 ? kUncertainShare * w / mean : kUncertainShare));
  }
  return weights;
}

}  // namespace nibble
