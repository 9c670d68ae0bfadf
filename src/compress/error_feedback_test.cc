#include "compress/error_feedback.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "compress/round_to_nearest.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 37, kCols = 96, kInputs = 500;

// Inputs whose columns are correlated and of different size, and weights.
struct Problem {
  std::vector<float> x = std::vector<float>(kInputs * kCols), original = x;
  std::vector<float> weights = std::vector<float>(kRows * kCols);
  Moments moments{};
  std::vector<OutputHessian> coupled{};
  ThreadPool pool{2};

  explicit Problem(bool with_cross) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (float& w : weights) w = normal(random);
    for (int64_t r = 0; r < kInputs; ++r) {
      const float common = normal(random);
      for (int64_t k = 0; k < kCols; ++k) {
        const size_t at = size_t(r * kCols + k);
        original[at] = (common + normal(random)) * (k % 7 == 0 ? 5.0f : 1.0f);
        x[at] = 0.9f * original[at] + 0.05f * normal(random);
      }
    }
    moments.reset(kCols, with_cross);
    moments.add(x.data(), original.data(), nullptr, kInputs, pool);
  }

  // Sum over the inputs of |Q x - W y|^2, y being x or the original inputs.
  double output_error(const Encoded& encoded, const std::vector<float>& y) const {
    double sum = 0;
    std::vector<float> row(kCols);
    for (int64_t n = 0; n < kRows; ++n) {
      encoded.decode_row(n, row.data());
      for (int64_t r = 0; r < kInputs; ++r) {
        double d = 0;
        for (int64_t k = 0; k < kCols; ++k) {
          d += double(row[size_t(k)]) * x[size_t(r * kCols + k)] -
               double(weights[size_t(n * kCols + k)]) * y[size_t(r * kCols + k)];
        }
        sum += d * d;
      }
    }
    return sum;
  }

  FeedbackResult encode(const FeedbackOptions& options, Precision precision = Precision::kNvfp4) {
    std::vector<float> scratch = weights;
    return encode_with_feedback("test", scratch, kRows, precision, moments, coupled, options, pool);
  }
};

TEST(ErrorFeedback, HalvesTheErrorOfRoundingToNearest) {
  Problem p(false);
  const Encoded nearest =
      round_to_nearest(p.weights.data(), kRows, kCols, Precision::kNvfp4, p.pool);
  const FeedbackResult fed = p.encode({});
  const double error = p.output_error(fed.encoded, p.x);
  EXPECT_LT(error, 0.5 * p.output_error(nearest, p.x));
  const double output = p.moments.output_energy(p.weights.data(), kRows, p.pool);
  EXPECT_NEAR(fed.output_error, std::sqrt(error / output), 1e-4);
}

TEST(ErrorFeedback, MovedTargetsComeCloserToTheOriginalOutput) {
  Problem p(true);
  double before = p.output_error(p.encode({.target_share = 0}).encoded, p.original);
  for (const double share : {0.5, 1.0}) {
    const double error = p.output_error(p.encode({.target_share = share}).encoded, p.original);
    EXPECT_LT(error, before) << share;
    before = error;
  }
}

// Rows 5 to 28 are read by a linear of 8 outputs.
TEST(ErrorFeedback, CoupledRowsLoseLessInWhatReadsThem) {
  constexpr int64_t kFirst = 5, kCount = 24, kReaders = 8;
  Problem p(false);
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> reader(kReaders * kCount);
  for (float& w : reader) w = normal(random);
  const auto loss = [&](const Encoded& encoded) {
    std::vector<float> change(kReaders * kCols), row(kCols);
    for (int64_t n = 0; n < kCount; ++n) {
      encoded.decode_row(kFirst + n, row.data());
      for (int64_t k = 0; k < kCols; ++k) {
        const float error = row[size_t(k)] - p.weights[size_t((kFirst + n) * kCols + k)];
        for (int64_t o = 0; o < kReaders; ++o) {
          change[size_t(o * kCols + k)] += reader[size_t(o * kCount + n)] * error;
        }
      }
    }
    return p.moments.output_energy(change.data(), kReaders, p.pool);
  };
  const Encoded alone = p.encode({}).encoded;
  OutputHessian hessian{.first = kFirst, .size = kCount, .values = std::vector<float>(576)};
  for (int64_t i = 0; i < kCount * kCount; ++i) {
    for (int64_t o = 0; o < kReaders; ++o) {
      hessian.values[size_t(i)] +=
          reader[size_t(o * kCount + i / kCount)] * reader[size_t(o * kCount + i % kCount)];
    }
  }
  p.coupled = {hessian};
  const Encoded coupled = p.encode({}).encoded;
  EXPECT_LT(loss(coupled), 0.5 * loss(alone));
  const auto is_same = [&](int64_t n) {
    const auto row = [&](const Encoded& e) { return e.codes.begin() + n * kCols / 2; };
    return std::equal(row(alone), row(alone) + kCols / 2, row(coupled));
  };
  for (int64_t n = 0; n < kRows; ++n) {
    const bool is_coupled = n >= kFirst && n < kFirst + kCount;
    EXPECT_TRUE(is_coupled || is_same(n)) << n;
  }
}

TEST(ErrorFeedback, MovesTargetsOfFp8Too) {
  Problem p(true);
  const Encoded nearest = round_to_nearest(p.weights.data(), kRows, kCols, Precision::kFp8, p.pool);
  EXPECT_EQ(p.encode({.target_share = 0}, Precision::kFp8).encoded.codes, nearest.codes);
  const Encoded moved = p.encode({.target_share = 0.5}, Precision::kFp8).encoded;
  EXPECT_LT(p.output_error(moved, p.original), p.output_error(nearest, p.original));
}

TEST(ErrorFeedback, NeedsNoInputs) {
  Problem p(false);
  p.moments.reset(kCols, false);
  const FeedbackResult fed = p.encode({});
  std::vector<float> row(kCols);
  fed.encoded.decode_row(0, row.data());
  for (int64_t k = 0; k < kCols; ++k) {
    EXPECT_NEAR(row[size_t(k)], p.weights[size_t(k)], std::fabs(p.weights[size_t(k)]) / 3 + 0.3);
  }
}

TEST(ErrorFeedback, DoesNotDependOnTheNumberOfThreads) {
  Problem one(true), many(true);
  ThreadPool pool(3);
  std::vector<float> a = one.weights, b = many.weights;
  const auto x =
      encode_with_feedback("test", a, kRows, Precision::kNvfp4, one.moments, {}, {}, one.pool);
  const auto y =
      encode_with_feedback("test", b, kRows, Precision::kNvfp4, many.moments, {}, {}, pool);
  EXPECT_EQ(x.encoded.codes, y.encoded.codes);
  EXPECT_EQ(x.encoded.scales, y.encoded.scales);
}

}  // namespace
}  // namespace nibble
