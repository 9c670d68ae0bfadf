// sample of a sibling against reference/, and the reference against hand-made cases.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "backend/cases.h"
#include "backend/create.h"
#include "backend/reference/reference_backend.h"

namespace nibble {
namespace {

struct Result {
  std::vector<int32_t> tokens, top_ids;
  std::vector<float> logprobs;
};

Result run(Backend& backend, const std::vector<float>& logits, int64_t vocab,
           const SampleBatch& batch) {
  const int64_t rows = int64_t(batch.rows.size());
  DeviceMatrix in(backend, rows, vocab, logits), tokens(backend, rows, 1, DType::kI32);
  DeviceMatrix logprobs(backend, rows, 1 + batch.max_logprobs);
  DeviceMatrix top_ids(backend, rows, batch.max_logprobs, DType::kI32);
  backend.sample(in.tensor(), batch, {tokens.tensor(), logprobs.tensor(), top_ids.tensor()});
  return {tokens.ints(), top_ids.ints(), logprobs.floats()};
}

class SampleTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!is_here(GetParam())) GTEST_SKIP() << "no CUDA device here";
    backend_ = test_backend(GetParam());
  }
  int32_t one(const std::vector<float>& logits, SampleRow row, std::vector<LogitEdit> edits = {}) {
    row.num_edits = int(edits.size());
    return run(*backend_, logits, int64_t(logits.size()), {.rows = {row}, .edits = edits})
        .tokens[0];
  }
  ReferenceBackend reference_;
  std::unique_ptr<Backend> backend_;
  std::mt19937 random_{3};
};

TEST_P(SampleTest, GreedyTakesTheLowestIdOfEquals) {
  std::vector<float> logits(100, -1.0f);
  logits[41] = logits[17] = logits[99] = 2.5f;
  EXPECT_EQ(one(logits, {}), 17);
  logits[0] = 2.5f;
  EXPECT_EQ(one(logits, {}), 0);
}

TEST_P(SampleTest, EditsComeBeforeTheChoice) {
  const std::vector<float> logits = {1.0f, 4.0f, 3.0f, -1.0f};
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(one(logits, {}, {{.token = 1, .repetition = 2.0f}}), 2);
  EXPECT_EQ(one(logits, {}, {{.token = 1, .offset = -infinity}}), 2);
  EXPECT_EQ(one(logits, {}, {{.token = 3, .offset = 9}}), 3);
  EXPECT_EQ(one(logits, {}, {{.token = 3, .repetition = 0.1f, .offset = 4.5f}}), 3);
}

TEST_P(SampleTest, StagesOfTheDraw) {
  // Probabilities .5 .25 .125 .125 at temperature 1, ids shuffled.
  const std::vector<float> logits = {std::log(0.125f), std::log(0.5f), std::log(0.125f),
                                     std::log(0.25f)};
  SampleRow row{.temperature = 1.0f};
  const auto at = [&](float uniform) {
    row.uniform = uniform;
    return one(logits, row);
  };
  EXPECT_EQ(at(0.0f), 1);
  EXPECT_EQ(at(0.49f), 1);
  EXPECT_EQ(at(0.51f), 3);
  EXPECT_EQ(at(0.76f), 0);
  EXPECT_EQ(at(0.99f), 2);
  row.top_k = 2;
  EXPECT_EQ(at(0.99f), 3);
  EXPECT_EQ(at(0.6f), 1);  // .5 / .75
  row = {.temperature = 1.0f, .top_p = 0.6f};
  EXPECT_EQ(at(0.99f), 3);
  row = {.temperature = 1.0f, .top_p = 0.4f};
  EXPECT_EQ(at(0.99f), 1);
  row = {.temperature = 1.0f, .min_p = 0.4f};
  EXPECT_EQ(at(0.99f), 3);
  row = {.temperature = 0.5f};  // .727 .182 .045 .045
  EXPECT_EQ(at(0.72f), 1);
  EXPECT_EQ(at(0.74f), 3);
}

TEST_P(SampleTest, AgreesWithTheReference) {
  int compared = 0;
  struct Case {
    int64_t vocab, rows;
    float step;  // logits are multiples of it: many equal ones
  };
  for (const auto& [vocab, rows, step] :
       {Case{7, 60, 0}, {500, 60, 0}, {6144, 60, 0}, {20000, 24, 0.5f}, {154880, 6, 0}}) {
    SampleBatch batch{.max_logprobs = 5};
    for (int64_t r = 0; r < rows; ++r) {
      SampleRow row{.temperature = r % 6 == 0 ? 0.0f : 0.3f + 0.2f * float(r % 5)};
      if (r % 3 == 1) row.top_k = int(1 + r % 40);
      if (r % 4 == 1) row.top_p = 0.1f + 0.05f * float(r % 17);
      if (r % 5 == 1) row.min_p = 0.02f * float(r % 9);
      if (r % 7 == 3) row.target = int32_t(r % vocab);
      row.num_logprobs = int(r % 7) - 1;
      row.uniform = std::uniform_real_distribution<float>(0.001f, 0.999f)(random_);
      row.first_edit = int(batch.edits.size());
      for (int32_t id = 0; id < r % 5; ++id) {
        batch.edits.push_back({.token = id, .repetition = 1.3f, .offset = -0.5f});
        ++row.num_edits;
      }
      batch.rows.push_back(row);
    }
    auto logits = random_floats(rows * vocab, random_, 3);
    if (step > 0) {
      for (float& logit : logits) logit = std::round(logit / step) * step;
    }
    // The draw is decided by running sums: compare where it does not hang on their last digits.
    SampleBatch low = batch, high = batch;
    for (size_t r = 0; r < batch.rows.size(); ++r) {
      low.rows[r].uniform -= 1e-4f;
      high.rows[r].uniform += 1e-4f;
    }
    const Result want = run(reference_, logits, vocab, batch);
    const Result below = run(reference_, logits, vocab, low);
    const Result above = run(reference_, logits, vocab, high);
    const Result got = run(*backend_, logits, vocab, batch);
    for (size_t r = 0; r < batch.rows.size(); ++r) {
      if (below.tokens[r] != above.tokens[r]) continue;
      ++compared;
      ASSERT_EQ(got.tokens[r], want.tokens[r]) << "row " << r << " of " << vocab;
      for (int k = 0; k <= batch.rows[r].num_logprobs; ++k) {
        const size_t i = r * 6 + size_t(k);
        ASSERT_NEAR(got.logprobs[i], want.logprobs[i], 2e-5);
        if (k > 0) {
          ASSERT_EQ(got.top_ids[r * 5 + size_t(k) - 1], want.top_ids[r * 5 + size_t(k) - 1]);
        }
      }
    }
  }
  EXPECT_GT(compared, 120);
}

// The next steps can be made before anybody has read what was chosen.
TEST_P(SampleTest, AStepCanNameChoicesThatNobodyHasRead) {
  constexpr int64_t kVocab = 50, kCols = 64;
  const Weight host = random_weight("e", Use::kTable, Format::kBF16, 1, kVocab, kCols, random_);
  const Weight table = backend_->upload(host);
  DeviceMatrix tokens(*backend_, 3, 1, DType::kI32), x(*backend_, 4, kCols);
  const SampleResult result{.tokens = tokens.tensor(), .logprobs = {}, .top_ids = {}};
  std::vector<std::vector<int32_t>> read(4, std::vector<int32_t>(3));
  for (int step = 0; step < 4; ++step) {  // a card records what comes again
    const std::vector<int32_t> chosen = {step, 20 + step, 49 - step};
    std::vector<float> logits(3 * kVocab);
    for (size_t r = 0; r < 3; ++r) logits[r * kVocab + size_t(chosen[r])] = 1.0f;
    DeviceMatrix in(*backend_, 3, kVocab, logits), probabilities(*backend_, 3, 1);
    SampleResult out = result;
    out.logprobs = probabilities.tensor();
    backend_->sample(in.tensor(), {.rows = std::vector<SampleRow>(3)}, out);
    backend_->start_read(tokens.tensor().data, read[size_t(step)].data(), 3 * sizeof(int32_t));
    const Batch batch{.tokens = {-2, 5, -1, -3},
                      .chosen = static_cast<const int32_t*>(tokens.tensor().data),
                      .segments = {{0, 1}, {1, 1}, {2, 1}, {3, 1}},
                      .pages = {0},
                      .logit_rows = {0, 1, 2, 3}};
    backend_->begin_step(batch);
    backend_->replay(1, [&] { backend_->embed(table, batch, x.tensor()); });
    std::vector<float> want(4 * kCols);
    for (int t = 0; t < 4; ++t) {
      const int32_t token = std::vector<int32_t>{chosen[1], 5, chosen[0], chosen[2]}[size_t(t)];
      decode_row(host, token, want.data() + t * kCols);
    }
    EXPECT_EQ(x.floats(), want);
  }
  for (int32_t step = 0; step < 4; ++step) {
    backend_->finish_read(read[size_t(step)].data());
    EXPECT_EQ(read[size_t(step)], (std::vector<int32_t>{step, 20 + step, 49 - step}));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, SampleTest, testing::Values("reference", "cpu", "cuda"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace nibble
