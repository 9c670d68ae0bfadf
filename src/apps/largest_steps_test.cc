#include "apps/largest_steps.h"

#include <gtest/gtest.h>

#include "backend/create.h"
#include "model/glm_dummy.h"
#include "model/glm_flash.h"

namespace nibble {
namespace {

GlmConfig pocket() {
  return GlmConfig::load(NIBBLE_SOURCE_DIR "/models/pocket");
}

TEST(LargestSteps, NeedALayerOfEachKind) {
  GlmConfig config = pocket(), whole = config;
  GlmWeights weights = dummy_weights(whole);
  GlmWeights some = layers_of_each_kind(weights, config);
  EXPECT_EQ(config.num_layers, 2);
  EXPECT_EQ(config.dense_layers, 1);
  EXPECT_EQ(some.layers[0].o.name, "model.layers.0.self_attn.o_proj");
  EXPECT_EQ(some.layers[1].o.name, "model.layers.1.self_attn.o_proj");

  weights.layers[4].experts_down.parts[3].format = Format::kBF16;
  config = whole;
  some = layers_of_each_kind(weights, config);
  ASSERT_EQ(config.num_layers, 3);
  EXPECT_EQ(config.dense_layers, 1);
  EXPECT_EQ(some.layers[2].o.name, "model.layers.4.self_attn.o_proj");
}

TEST(LargestSteps, LeaveNothingBehind) {
  const GlmConfig config = pocket();
  GlmWeights weights = dummy_weights(config);
  const auto backend = create_backend({.device = "cpu", .threads = 2});
  weights.upload(*backend);
  run_largest_steps(config, weights, *backend, {.max_num_seqs = 3, .max_num_batched_tokens = 70});
  EXPECT_EQ(weights.layers.size(), size_t(config.num_layers));
  GlmFlash model(config, weights, *backend, 1, 1);  // the whole model is as it was
  EXPECT_EQ(model.config().num_layers, 6);
}

}  // namespace
}  // namespace nibble
