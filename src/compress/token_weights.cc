#include "compress/token_weights.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble {
namespace {

// The part of a weight that is the same for all tokens.
constexpr double kEvenPart = 0.25;

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

std::vector<float> token_weights(const CalibrationTokens& tokens, const std::vector<float>& u) {
  std::vector<float> weights(u.size(), 1.0f);
  const double mean = std::accumulate(u.begin(), u.end(), 0.0) / double(u.size());
  if (mean == 0) return weights;
  for (const Slab& slab : tokens.slabs()) {
    for (const Segment& sample : slab.batch.segments) {
      double shares = 0;
      for (int i = sample.num_rows - 1; i >= 0; --i) {
        const auto row = size_t(slab.first_row + sample.first_row + i);
        shares += u[row] / double(i + 1);
        weights[row] = float(kEvenPart + (1 - kEvenPart) * shares / mean);
      }
    }
  }
  return weights;
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
  std::vector<float> u(size_t(runner.tokens().num_tokens()));
  for (const Slab& slab : runner.tokens().slabs()) {
    const std::vector<int>& rows = slab.before_reply;
    runner.run_head(slab, rows,
                    [&](int64_t first, int64_t count, const std::vector<float>& logits) {
                      pool.parallel_for(count, [&](int64_t r) {
                        u[size_t(slab.first_row + rows[size_t(first + r)])] =
                            float(uncertainty(logits.data() + r * vocab, vocab));
                      });
                    });
  }
  return token_weights(runner.tokens(), u);
}

}  // namespace nibble
