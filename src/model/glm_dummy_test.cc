#include "model/glm_dummy.h"

#include <gtest/gtest.h>

#include <cmath>

#include "model/glm_builtin.h"
#include "model/glm_cost.h"

namespace nibble {
namespace {

TEST(DummyWeights, HaveTheModelsShapesAndBytes) {
  const GlmConfig config = *builtin_config("glm-4.7-flash-reap-23b");
  GlmWeights weights = dummy_weights(config);
  int64_t parameters = 0;
  weights.for_each([&](Weight& w) {
    parameters += w.total_rows() * w.cols;
    int64_t rows = 0;
    for (const WeightPart& part : w.parts) rows += part.rows;
    EXPECT_EQ(rows, w.total_rows()) << w.name;
  });
  // The published checkpoint's parameters and bytes; the bytes of a token.
  EXPECT_EQ(parameters, 22'996'118'432);
  EXPECT_NEAR(double(weights.size_bytes()), 13'854'180'160.0, 1e5);
  EXPECT_NEAR(cost_of(config, weights).bytes_per_token, 2158.4e6, 1e6);
}

TEST(DummyWeights, KeepTheVariance) {
  GlmConfig config = *builtin_config("glm-4.7-flash");
  config.num_layers = 2;
  const GlmWeights weights = dummy_weights(config);
  for (const Weight* w : {&weights.layers[0].o, &weights.layers[1].experts_down,
                          &weights.layers[1].router, &weights.lm_head}) {
    std::vector<float> row(static_cast<size_t>(w->cols));
    double sum = 0;
    for (int64_t r = 0; r < 40; ++r) {
      decode_row(*w, r * (w->total_rows() / 40), row.data());
      for (const float v : row) sum += double(v) * v;
    }
    EXPECT_NEAR(sum / 40, 1.0, 0.03) << w->name;
  }
}

TEST(DummyWeights, RowsDiffer) {
  GlmConfig config = *builtin_config("glm-4.7-flash");
  config.num_layers = 2;
  const GlmWeights weights = dummy_weights(config);
  const Weight& head = weights.lm_head;
  std::vector<float> a(size_t(head.cols)), b(a);
  decode_row(head, 7, a.data());
  for (int64_t r = 8; r < head.rows; r += 97) {
    decode_row(head, r, b.data());
    ASSERT_NE(a, b) << r;
  }
}

}  // namespace
}  // namespace nibble
