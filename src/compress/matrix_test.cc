#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "compress/cholesky.h"
#include "compress/matrix_product.h"

namespace nibble {
namespace {

template <typename T>
std::vector<T> random_values(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> values(count);
  for (T& value : values) value = T(normal(random));
  return values;
}

struct Shape {
  int64_t rows, cols, depth;
};

class MatrixProductTest : public ::testing::TestWithParam<Shape> {};

TEST_P(MatrixProductTest, IsTheSumOfProducts) {
  const auto [rows, cols, depth] = GetParam();
  ThreadPool pool(2);
  const auto x = random_values<float>(size_t(depth * rows), 1);
  const auto y = random_values<float>(size_t(cols * depth), 2);  // depth runs fastest
  const auto start = random_values<float>(size_t(rows * cols), 3);
  auto out = start;
  add_product({.x = {.data = x.data(), .depth_stride = rows},
               .y = {.data = y.data(), .depth_stride = 1, .stride = depth},
               .out = out.data(),
               .out_stride = cols,
               .rows = rows,
               .cols = cols,
               .depth = depth,
               .subtract = true},
              pool);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      double sum = start[size_t(i * cols + j)], bound = std::fabs(sum);
      for (int64_t t = 0; t < depth; ++t) {
        const double product = double(x[size_t(t * rows + i)]) * y[size_t(j * depth + t)];
        sum -= product;
        bound += std::fabs(product);
      }
      ASSERT_NEAR(out[size_t(i * cols + j)], sum, bound * double(depth + 2) * 0x1p-24);
    }
  }
}

TEST_P(MatrixProductTest, WeighsItsTerms) {
  const auto [rows, cols, depth] = GetParam();
  ThreadPool pool(2);
  const auto x = random_values<float>(size_t(depth * rows), 1);
  const auto y = random_values<float>(size_t(depth * cols), 2);
  const auto weights = random_values<float>(size_t(depth), 3);
  std::vector<float> weighted(x);
  for (int64_t i = 0; i < depth * rows; ++i) weighted[size_t(i)] *= weights[size_t(i / rows)];
  std::vector<float> out(size_t(rows * cols)), want(out);
  MatrixProduct<float> product{.x = {.data = x.data(), .depth_stride = rows},
                               .y = {.data = y.data(), .depth_stride = cols},
                               .weights = weights.data(),
                               .out = out.data(),
                               .out_stride = cols,
                               .rows = rows,
                               .cols = cols,
                               .depth = depth};
  add_product(product, pool);
  product.x.data = weighted.data();
  product.weights = nullptr;
  product.out = want.data();
  add_product(product, pool);
  EXPECT_EQ(out, want);
}

INSTANTIATE_TEST_SUITE_P(Shapes, MatrixProductTest,
                         ::testing::Values(Shape{1, 1, 1}, Shape{6, 64, 256}, Shape{7, 65, 257},
                                           Shape{33, 130, 600}, Shape{128, 48, 3}),
                         [](const auto& info) {
                           const Shape& s = info.param;
                           return std::to_string(s.rows) + "x" + std::to_string(s.cols) + "x" +
                                  std::to_string(s.depth);
                         });

class CholeskyTest : public ::testing::TestWithParam<int64_t> {};

TEST_P(CholeskyTest, FactorsAndSolves) {
  const int64_t n = GetParam();
  ThreadPool pool(2);
  const auto samples = random_values<double>(size_t(2 * n * n), 1);
  std::vector<double> g(size_t(n * n));
  for (int64_t i = 0; i < n; ++i) g[size_t(i * n + i)] = 1;
  const Operand<double> x{.data = samples.data(), .depth_stride = n};
  add_product(
      {.x = x, .y = x, .out = g.data(), .out_stride = n, .rows = n, .cols = n, .depth = 2 * n},
      pool);
  auto factor = g;
  ASSERT_TRUE(factor_cholesky(factor.data(), n, pool));
  double worst = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i; j < n; ++j) {
      double sum = 0;
      for (int64_t t = 0; t <= i; ++t) sum += factor[size_t(t * n + i)] * factor[size_t(t * n + j)];
      worst = std::max(worst, std::fabs(sum - g[size_t(i * n + j)]) / g[size_t(i * n + i)]);
    }
  }
  EXPECT_LT(worst, double(n + 4) * 0x1p-52);  // n products, two roundings of the pivot

  // x g, solved, is x again.
  const int64_t rows = 3;
  const auto want = random_values<float>(size_t(rows * n), 2);
  std::vector<float> solved(size_t(rows * n));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += want[size_t(r * n + i)] * g[size_t(i * n + j)];
      solved[size_t(r * n + j)] = float(sum);
    }
  }
  const std::vector<float> u(factor.begin(), factor.end());
  solve_cholesky(u.data(), n, solved.data(), rows, pool);
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(solved[i], want[i], double(n) * 1e-4) << i;
}

INSTANTIATE_TEST_SUITE_P(Sizes, CholeskyTest, ::testing::Values(1, 16, 64, 65, 200));

TEST(Cholesky, SaysWhenThereIsNone) {
  ThreadPool pool(1);
  std::vector<double> g = {1, 2, 0, 1};
  EXPECT_FALSE(factor_cholesky(g.data(), 2, pool));
}

}  // namespace
}  // namespace nibble
