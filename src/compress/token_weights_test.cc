#include "compress/token_weights.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend/create.h"
#include "checkpoint/checkpoint.h"
#include "compress/moments.h"

namespace nibble {
namespace {

const char* const kPocket = NIBBLE_SOURCE_DIR "/models/pocket";

TEST(TokenWeights, UncertaintyIsOneLessTheSquaresOfTheProbabilities) {
  const std::vector<float> even(8, 100.0f), sure = {-200, 0, -200};
  EXPECT_DOUBLE_EQ(uncertainty(even.data(), 8), 7.0 / 8);
  EXPECT_EQ(uncertainty(sure.data(), 3), 0);
  const std::vector<float> two = {std::log(0.75f), -300, std::log(0.25f)};
  EXPECT_NEAR(uncertainty(two.data(), 3), 1 - 0.75 * 0.75 - 0.25 * 0.25, 1e-6);
}

TEST(TokenWeights, GrowWithTheUncertaintyOfThePredictionsThatReadThem) {
  const CalibrationTokens tokens({{.tokens = {1, 2}}, {.tokens = {3, 4, 5}}});
  const std::vector<float> w = token_weights(tokens, {0, 0.5f, 0.25f, 0, 0.75f});
  const double shares[] = {0.25, 0.25, 0.5, 0.25, 0.25}, mean = 1.5 / 5;
  for (size_t t = 0; t < w.size(); ++t) {
    EXPECT_FLOAT_EQ(w[t], float(0.25 + 0.75 * shares[t] / mean)) << t;
  }
  EXPECT_NEAR(std::accumulate(w.begin(), w.end(), 0.0), 5, 1e-6);
  EXPECT_EQ(token_weights(tokens, std::vector<float>(5)), std::vector<float>(5, 1.0f));
}

TEST(TokenWeights, AreMeasuredBeforeReplies) {
  const GlmConfig config = GlmConfig::load(kPocket);
  const Checkpoint checkpoint = Checkpoint::open(kPocket);
  const GlmWeights weights = GlmWeights::load(checkpoint, config);
  ThreadPool pool(2);
  const auto backend = create_backend({.device = "cpu", .threads = 2});
  // More rows than the head takes at once, in two slabs.
  std::vector<CalibrationSample> samples(7);
  for (size_t s = 0; s < samples.size(); ++s) {
    for (size_t i = 0; i < 33; ++i) {
      samples[s].tokens.push_back(int32_t((s * 211 + i * 37) % 6000));
      samples[s].before_reply.push_back(i % 3 == 1);
    }
  }
  const CalibrationTokens tokens(samples, /*slab_rows=*/6 * 33);
  ASSERT_EQ(tokens.slabs().size(), 2u);
  ASSERT_GT(tokens.slabs()[0].before_reply.size(), size_t(LayerRunner::kHeadRows));
  LayerRunner runner(config, weights, *backend, tokens, "");
  std::vector<int> layers;
  const std::vector<float> w =
      measure_token_weights(runner, pool, [&](int layer) { layers.push_back(layer); });
  std::vector<int> all(size_t(config.num_layers + 1));
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(layers, all);

  std::vector<float> u(w.size());
  for (const Slab& slab : tokens.slabs()) {
    auto row = size_t(slab.first_row + 1);
    EXPECT_EQ(slab.before_reply.size(), size_t(slab.batch.rows()) / 3);
    runner.run_head(slab, slab.before_reply,
                    [&](int64_t, int64_t count, const std::vector<float>& logits) {
                      for (int64_t r = 0; r < count; ++r, row += 3) {
                        u[row] = float(uncertainty(logits.data() + r * config.vocab, config.vocab));
                      }
                    });
  }
  EXPECT_EQ(w, token_weights(tokens, u));
  EXPECT_LT(*std::min_element(w.begin(), w.end()), 0.5);
}

TEST(Moments, WeighTheirInputsButNotTheLargest) {
  ThreadPool pool(1);
  const float x[] = {1, -8, 2, 3}, original[] = {1, 1, 0, 2}, weights[] = {0.5f, 2};
  Moments m;
  m.reset(2, /*with_cross=*/true);
  m.add(x, original, weights, 2, pool);
  EXPECT_EQ(m.rows, 2);
  EXPECT_EQ(m.inputs[0], 0.5f * 1 + 2 * 4);
  EXPECT_EQ(m.inputs[1], 0.5f * -8 + 2 * 6);
  EXPECT_EQ(m.inputs[3], 0.5f * 64 + 2 * 9);
  EXPECT_EQ(m.cross,
            (std::vector<float>{0.5f * 1, 0.5f * -8, 0.5f * 1 + 2 * 4, 0.5f * -8 + 2 * 6}));
  EXPECT_EQ(m.amax(), 8);
  EXPECT_EQ(m.column_amax[0], 2);
  EXPECT_EQ(m.column_sum[0], 3);
}

}  // namespace
}  // namespace nibble
