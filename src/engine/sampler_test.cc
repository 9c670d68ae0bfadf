#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>

#include "backend/reference/reference_backend.h"

namespace nibble {
namespace {

class SamplerTest : public testing::Test {
 protected:
  // The token chosen from `logits` for a sequence with this history.
  int32_t choose(SamplingParams params, std::vector<float> logits,
                 std::vector<int32_t> output = {}) {
    sequence_ = {.request = {.prompt = {0}, .sampling = std::move(params)}};
    sequence_.tokens = {0};
    sequence_.num_prompt = 1;
    for (const int32_t token : output) {
      sequence_.tokens.push_back(token);
      ++sequence_.output_counts[token];
    }
    sequence_.num_rows = 1;
    sequence_.samples = true;
    const Batch batch{.tokens = {0}, .segments = {{}}, .pages = {}, .logit_rows = {0}};
    sampler_.begin(Tensor(logits.data(), DType::kF32, 1, int64_t(logits.size())), batch,
                   {&sequence_});
    sampler_.finish();
    return sampler_.token(0);
  }
  ReferenceBackend backend_;
  Sampler sampler_{backend_, 4, 3, 5, {4}};
  Sequence sequence_;
};

TEST_F(SamplerTest, PenaltiesFollowTheHistory) {
  const std::vector<float> logits = {1.0f, 2.0f, 1.9f, 0.0f, -5.0f};
  EXPECT_EQ(choose({.temperature = 0}, logits), 1);
  EXPECT_EQ(choose({.temperature = 0, .presence_penalty = 0.2f}, logits, {1}), 2);
  EXPECT_EQ(choose({.temperature = 0, .frequency_penalty = 0.06f}, logits, {1}), 1);
  EXPECT_EQ(choose({.temperature = 0, .frequency_penalty = 0.06f}, logits, {1, 1}), 2);
  EXPECT_EQ(choose({.temperature = 0, .repetition_penalty = 1.2f}, logits, {1}), 2);
  EXPECT_EQ(choose({.temperature = 0, .repetition_penalty = 1.2f}, logits, {3}), 1);
}

TEST_F(SamplerTest, BiasAndAllowedTokens) {
  const std::vector<float> logits = {1.0f, 2.0f, 1.9f, 0.0f, -5.0f};
  EXPECT_EQ(choose({.temperature = 0, .logit_bias = {{3, 5.0f}}}, logits), 3);
  EXPECT_EQ(choose({.temperature = 0, .allowed_token_ids = {0, 3}}, logits), 0);
}

TEST_F(SamplerTest, NoStopTokenBeforeMinTokens) {
  const std::vector<float> logits = {0, 0, 1, 2, 3};
  EXPECT_EQ(choose({.temperature = 0}, logits), 4);
  EXPECT_EQ(choose({.temperature = 0, .min_tokens = 2, .stop_token_ids = {3}}, logits, {1}), 2);
  EXPECT_EQ(choose({.temperature = 0, .min_tokens = 2, .stop_token_ids = {3}}, logits, {1, 1}), 4);
}

TEST_F(SamplerTest, StopTokens) {
  sequence_.request.sampling = {.stop_token_ids = {2}};
  EXPECT_TRUE(sampler_.is_stop(sequence_, 2));
  EXPECT_TRUE(sampler_.is_stop(sequence_, 4));
  EXPECT_FALSE(sampler_.is_stop(sequence_, 3));
  sequence_.request.sampling.ignore_eos = true;
  EXPECT_FALSE(sampler_.is_stop(sequence_, 4));
  EXPECT_TRUE(sampler_.is_stop(sequence_, 2));
}

TEST_F(SamplerTest, LogprobsAreOfTheModelsOwnLogits) {
  choose({.temperature = 0, .logit_bias = {{0, 100.0f}}, .logprobs = 2}, {0, 1, 2, 3, 4});
  const TokenLogprobs logprobs = sampler_.logprobs(0);
  const double log_sum = std::log(1 + std::exp(1) + std::exp(2) + std::exp(3) + std::exp(4));
  EXPECT_EQ(sampler_.token(0), 0);
  EXPECT_NEAR(logprobs.logprob, -log_sum, 1e-5);
  ASSERT_EQ(logprobs.top.size(), 2u);
  EXPECT_EQ(logprobs.top[0].first, 4);
  EXPECT_NEAR(logprobs.top[1].second, 3 - log_sum, 1e-5);
}

TEST(Uniform, IsEvenAndRepeatable) {
  double sum = 0;
  for (int i = 0; i < 10000; ++i) {
    const float u = uniform_of(42, i);
    ASSERT_GE(u, 0.0f);
    ASSERT_LT(u, 1.0f);
    sum += u;
  }
  EXPECT_NEAR(sum / 10000, 0.5, 0.02);
  EXPECT_EQ(uniform_of(1, 5), uniform_of(1, 5));
  EXPECT_NE(uniform_of(1, 5), uniform_of(2, 5));
}

}  // namespace
}  // namespace nibble
