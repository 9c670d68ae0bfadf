#include "compress/error_feedback.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "compress/block_search.h"
#include "compress/cholesky.h"
#include "compress/matrix_product.h"
#include "compress/round_to_nearest.h"
#include "quant/nvfp4.h"

namespace nibble {
namespace {

constexpr int64_t kBlock = nvfp4::kBlock;

// Columns in the order in which they are rounded, and the factors of that order. Matrices that are
// factored have the reverse order: then the upper factor of H's reverse gives R.
class Order {
 public:
  Order(const Moments& moments, double damping) : n_(moments.cols), moments_(moments) {
    const double count = double(std::max<int64_t>(moments.rows, 1));
    double diagonal = 0;
    for (int64_t k = 0; k < n_; ++k) diagonal += moments.inputs[size_t(k * n_ + k)] / count;
    damping_ = damping * diagonal / double(n_) + 1e-12;
    std::vector<double> weight(static_cast<size_t>(n_ / kBlock));
    for (int64_t k = 0; k < n_; ++k) {
      weight[size_t(k / kBlock)] += moments.inputs[size_t(k * n_ + k)];
    }
    blocks_.resize(weight.size());
    std::iota(blocks_.begin(), blocks_.end(), 0);
    std::stable_sort(blocks_.begin(), blocks_.end(),
                     [&](int64_t a, int64_t b) { return weight[size_t(a)] > weight[size_t(b)]; });
  }

  // The column that is rounded at `place`.
  int64_t column(int64_t place) const {
    return blocks_[size_t(place / kBlock)] * kBlock + place % kBlock;
  }
  int64_t block(int64_t place) const { return blocks_[size_t(place)]; }

  // Mean of x_j x_k.
  double input(int64_t j, int64_t k) const {
    return double(moments_.inputs[size_t(std::min(j, k) * n_ + std::max(j, k))]) /
           double(std::max<int64_t>(moments_.rows, 1));
  }

  // U of the reversed, damped H, as FP32 [n, n].
  std::vector<float> factor(const std::string& name, ThreadPool& pool) const {
    std::vector<double> g(static_cast<size_t>(n_ * n_));
    pool.parallel_for(n_, [&](int64_t i) {
      const int64_t row = column(n_ - 1 - i);
      for (int64_t j = i; j < n_; ++j) g[size_t(i * n_ + j)] = input(row, column(n_ - 1 - j));
      g[size_t(i * n_ + i)] += damping_;
    });
    if (!factor_cholesky(g.data(), n_, pool)) {
      throw Error(name + ": its inputs over the calibration text are not finite");
    }
    return {g.begin(), g.end()};
  }

 private:
  const int64_t n_;
  const Moments& moments_;
  double damping_ = 0;
  std::vector<int64_t> blocks_;
};

// weights += share * weights (C - H) (H + l)^-1
void move_targets(std::vector<float>& weights, int64_t rows, const Moments& m, const Order& order,
                  const std::vector<float>& u, double share, ThreadPool& pool) {
  const int64_t n = m.cols;
  const double count = double(std::max<int64_t>(m.rows, 1));
  // C - H with its columns in the reversed order.
  std::vector<float> change(static_cast<size_t>(n * n));
  pool.parallel_for(n, [&](int64_t j) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t k = order.column(n - 1 - i);
      change[size_t(j * n + i)] =
          float(share * (double(m.cross[size_t(j * n + k)]) / count - order.input(j, k)));
    }
  });
  std::vector<float> moved(static_cast<size_t>(rows * n));
  add_product({.x = {.data = weights.data(), .depth_stride = 1, .stride = n},
               .y = {.data = change.data(), .depth_stride = n},
               .out = moved.data(),
               .out_stride = n,
               .rows = rows,
               .cols = n,
               .depth = n},
              pool);
  solve_cholesky(u.data(), n, moved.data(), rows, pool);
  pool.parallel_for(rows, [&](int64_t r) {
    for (int64_t i = 0; i < n; ++i) {
      weights[size_t(r * n + order.column(n - 1 - i))] += moved[size_t(r * n + i)];
    }
  });
}

struct Factors {
  std::vector<float> before, inside, weight;
};

Factors factors_of(const std::vector<float>& u, int64_t n, ThreadPool& pool) {
  const int64_t blocks = n / kBlock;
  Factors f{.before = std::vector<float>(size_t(128 * blocks * (blocks - 1))),
            .inside = std::vector<float>(size_t(n * kBlock)),
            .weight = std::vector<float>(static_cast<size_t>(n))};
  pool.parallel_for(blocks, [&](int64_t b) {
    for (int64_t c = 0; c < kBlock; ++c) {
      const float* row = u.data() + (n - 1 - b * kBlock - c) * n;
      const auto r = [&](int64_t place) { return row[n - 1 - place]; };
      const float pivot = r(b * kBlock + c);
      f.weight[size_t(b * kBlock + c)] = pivot * pivot;
      for (int64_t j = 0; j < b * kBlock; ++j) {
        f.before[size_t(128 * b * (b - 1) + j * kBlock + c)] = r(j) / pivot;
      }
      for (int64_t i = 0; i < c; ++i) {
        f.inside[size_t((b * kBlock + i) * kBlock + c)] = r(b * kBlock + i) / pivot;
      }
    }
  });
  return f;
}

// Rounds the `count` rows from `first` on, whose targets are [count, cols].
void round_rows(const float* targets, const Order& order, const Feedback& feedback,
                const ScaleSearch& search, int64_t first, int64_t count, Encoded& out) {
  const int64_t n = feedback.cols, blocks = n / kBlock;
  std::vector<float> ordered(size_t(kFeedbackRows * n));
  std::vector<uint8_t> codes(size_t(kFeedbackRows * n)), scales(size_t(kFeedbackRows * blocks));
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t p = 0; p < n; ++p) {
      ordered[size_t(r * n + p)] = targets[r * n + order.column(p)];
    }
  }
  round_rows_with_feedback(feedback, search, count, ordered.data(), codes.data(), scales.data());
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t at = (first + r) * blocks + order.block(b);
      out.scales[size_t(at)] = scales[size_t(r * blocks + b)];
      const uint8_t* from = codes.data() + r * n + b * kBlock;
      for (int64_t i = 0; i < kBlock / 2; ++i) {
        out.codes[size_t(at * kBlock / 2 + i)] = uint8_t(from[2 * i] | from[2 * i + 1] << 4);
      }
    }
  }
}

// Rows in the order in which they are rounded, and the factor of that order: with G + l = R R', R
// upper, row i takes over R_ji / R_ii of the error of an earlier row j.
class RowOrder {
 public:
  RowOrder(const OutputHessian& hessian, double damping, ThreadPool& pool)
      : n_(hessian.size), rows_(size_t(n_)), reversed_(size_t(n_ * n_)) {
    const auto g = [&](int64_t i, int64_t j) { return double(hessian.values[size_t(i * n_ + j)]); };
    double mean = 0;
    for (int64_t i = 0; i < n_; ++i) mean += g(i, i) / double(n_);
    std::iota(rows_.begin(), rows_.end(), 0);
    std::stable_sort(rows_.begin(), rows_.end(),
                     [&](int64_t a, int64_t b) { return g(a, a) > g(b, b); });
    for (int64_t i = 0; i < n_; ++i) {
      for (int64_t j = i; j < n_; ++j) {
        reversed_[size_t(i * n_ + j)] = g(row(n_ - 1 - i), row(n_ - 1 - j));
      }
      reversed_[size_t(i * n_ + i)] += damping * mean + 1e-12;
    }
    is_finite_ = factor_cholesky(reversed_.data(), n_, pool);
  }

  bool is_finite() const { return is_finite_; }
  int64_t row(int64_t place) const { return rows_[size_t(place)]; }
  float share(int64_t earlier, int64_t place) const {
    const double* u = reversed_.data() + (n_ - 1 - place) * n_;
    return float(u[n_ - 1 - earlier] / u[n_ - 1 - place]);
  }

 private:
  const int64_t n_;
  std::vector<int64_t> rows_;
  std::vector<double> reversed_;
  bool is_finite_ = false;
};

// Rounds the rows of targets [all rows, cols] that the order's Hessian couples, from `first` on.
void round_coupled_rows(const std::vector<float>& targets, int64_t first, int64_t count,
                        const RowOrder& rows, const Order& order, const Feedback& feedback,
                        const ScaleSearch& search, Encoded& out) {
  const int64_t n = feedback.cols;
  std::vector<float> errors(size_t(count * n)), row(static_cast<size_t>(n));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = first + rows.row(i);
    const float* target = targets.data() + at * n;
    std::copy_n(target, n, row.begin());
    for (int64_t j = 0; j < i; ++j) {
      const float share = rows.share(j, i);
      const float* error = errors.data() + j * n;
      for (int64_t k = 0; k < n; ++k) row[size_t(k)] += share * error[k];
    }
    round_rows(row.data(), order, feedback, search, at, 1, out);
    out.decode_row(at, row.data());
    for (int64_t k = 0; k < n; ++k) errors[size_t(i * n + k)] = target[k] - row[size_t(k)];
  }
}

// The rows that nothing couples, in parts of at most kFeedbackRows.
std::vector<std::pair<int64_t, int64_t>> uncoupled_rows(int64_t rows,
                                                        const std::vector<OutputHessian>& coupled) {
  std::vector<std::pair<int64_t, int64_t>> parts;  // first, count
  int64_t next = 0;
  const auto add_until = [&](int64_t end) {
    for (; next < end; next += kFeedbackRows) {
      parts.emplace_back(next, std::min<int64_t>(kFeedbackRows, end - next));
    }
  };
  for (const OutputHessian& hessian : coupled) {
    add_until(hessian.first);
    next = hessian.first + hessian.size;
  }
  add_until(rows);
  return parts;
}

// Rounds targets [rows, cols of the order], block by block.
Encoded round_targets(const std::string& name, const std::vector<float>& targets, int64_t rows,
                      const Order& order, const Factors& factors,
                      const std::vector<OutputHessian>& coupled, const FeedbackOptions& options,
                      int64_t n, ThreadPool& pool) {
  Encoded out = Encoded::of(Precision::kNvfp4, rows, n);
  float amax = 0;
  for (const float w : targets) amax = std::max(amax, std::fabs(w));
  out.tensor_scale = amax == 0 ? 1.0f : amax / (nvfp4::kE2M1Max * options.largest_scale);
  const Feedback feedback{.cols = n,
                          .before = factors.before.data(),
                          .inside = factors.inside.data(),
                          .weight = factors.weight.data()};
  const ScaleSearch search{.tensor_scale = out.tensor_scale,
                           .lowest = options.lowest_candidate,
                           .highest = options.highest_candidate};
  const auto parts = uncoupled_rows(rows, coupled);
  pool.parallel_for(int64_t(parts.size()), [&](int64_t i) {
    const auto [first, count] = parts[size_t(i)];
    round_rows(targets.data() + first * n, order, feedback, search, first, count, out);
  });
  std::vector<RowOrder> row_orders;
  for (const OutputHessian& hessian : coupled) {
    row_orders.emplace_back(hessian, options.damping, pool);
    if (!row_orders.back().is_finite()) {
      throw Error(name + ": the weights of the linear that reads it are not finite");
    }
  }
  pool.parallel_for(int64_t(coupled.size()), [&](int64_t i) {
    round_coupled_rows(targets, coupled[size_t(i)].first, coupled[size_t(i)].size,
                       row_orders[size_t(i)], order, feedback, search, out);
  });
  return out;
}

}  // namespace

FeedbackResult encode_with_feedback(const std::string& name, std::vector<float>& weights,
                                    int64_t rows, Precision precision, const Moments& moments,
                                    const std::vector<OutputHessian>& coupled,
                                    const FeedbackOptions& options, ThreadPool& pool) {
  const int64_t n = moments.cols;
  const double output = moments.output_energy(weights.data(), rows, pool);
  std::vector<float> original = weights;
  const Order order(moments, options.damping);
  const std::vector<float> u = order.factor(name, pool);
  if (!moments.cross.empty() && options.target_share != 0) {
    move_targets(weights, rows, moments, order, u, options.target_share, pool);
  }
  FeedbackResult result;
  Encoded& out = result.encoded;
  if (precision == Precision::kNvfp4) {
    out = round_targets(name, weights, rows, order, factors_of(u, n, pool), coupled, options, n,
                        pool);
  } else {
    out = round_to_nearest(weights.data(), rows, n, precision, pool);
  }
  pool.parallel_for(rows, [&](int64_t r) {
    out.decode_row(r, weights.data() + r * n);
    for (int64_t k = 0; k < n; ++k) original[size_t(r * n + k)] -= weights[size_t(r * n + k)];
  });
  if (output > 0)
    result.output_error = std::sqrt(moments.output_energy(original.data(), rows, pool) / output);
  return result;
}

}  // namespace nibble
