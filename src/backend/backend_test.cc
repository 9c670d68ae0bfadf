// Every operation of a sibling against reference/, over cases.h; and the promise that a row's
// result does not depend on the other rows, bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <set>

#include "backend/cases.h"
#include "backend/create.h"
#include "backend/reference/reference_backend.h"
#include "base/numbers.h"

namespace nibble {
namespace {

class BackendTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!is_here(GetParam())) GTEST_SKIP() << "no CUDA device here";
    backend_ = test_backend(GetParam());
    activation_ = backend_->activation_dtype();
    random_.seed(7);
  }
  std::vector<float> activations(int64_t count, float scale = 1.0f) {
    return random_activations(count, activation_, random_, scale);
  }
  ReferenceBackend reference_;
  std::unique_ptr<Backend> backend_;
  DType activation_ = DType::kF32;
  std::mt19937 random_;
};

// |got - want| <= bound, elementwise; on failure the worst element is printed.
void expect_close(const std::vector<float>& got, const std::vector<float>& want,
                  const std::vector<double>& bound, const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  size_t worst = 0;
  double worst_share = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::fabs(double(got[i]) - want[i]);
    const double share = error / bound[i];
    if (!(share <= worst_share)) worst_share = share, worst = i;
    if (std::isnan(share) && error != 0) break;
  }
  EXPECT_LE(worst_share, 1.0) << what << ": element " << worst << " is " << got[worst]
                              << ", should be " << want[worst] << " +- " << bound[worst];
}

std::vector<float> absolute(std::vector<float> values) {
  for (float& v : values) v = std::fabs(v);
  return values;
}

std::vector<float> decoded(const Weight& w) {
  std::vector<float> values(size_t(w.total_rows() * w.cols));
  for (int64_t r = 0; r < w.total_rows(); ++r) decode_row(w, r, values.data() + r * w.cols);
  return values;
}

// What product_error() is relative to: sum_k |x[k]| |w[n, k]|, or norm(x) norm(w[n]) for kI16.
std::vector<double> product_magnitudes(const std::vector<float>& x, const std::vector<float>& w,
                                       int64_t rows, int64_t outputs, int64_t inputs,
                                       DType input_dtype) {
  std::vector<double> magnitudes(size_t(rows * outputs), 0.0);
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t n = 0; n < outputs; ++n) {
      double sum = 0, xx = 0, ww = 0;
      for (int64_t k = 0; k < inputs; ++k) {
        const double a = x[size_t(t * inputs + k)], b = w[size_t(n * inputs + k)];
        sum += std::fabs(a * b);
        xx += a * a;
        ww += b * b;
      }
      magnitudes[size_t(t * outputs + n)] =
          input_dtype == DType::kI16 ? std::sqrt(xx) * std::sqrt(ww) : sum;
    }
  }
  return magnitudes;
}

std::vector<float> run_linear(Backend& backend, const Weight& host, const std::vector<float>& x,
                              const std::vector<float>& out, int64_t rows, bool accumulate,
                              DType out_dtype = DType::kF32) {
  const Weight w = backend.upload(host);
  DeviceMatrix in(backend, rows, host.cols, x, backend.activation_dtype());
  DeviceMatrix result(backend, rows, host.rows, out, out_dtype);
  backend.linear(in.tensor(), w, result.tensor(), accumulate);
  return result.floats();
}

TEST_P(BackendTest, Linear) {
  for (const LinearCase& c : linear_cases()) {
    const Weight w =
        random_weight("w", Use::kLinear, c.format, 1, c.outputs, c.inputs, random_, c.input_scales);
    const auto x = activations(c.rows * c.inputs), old = activations(c.rows * c.outputs);
    const auto want = run_linear(reference_, w, x, old, c.rows, c.accumulate, DType::kF32);
    const DType dtype = backend_->product_input_dtype(c.format);
    const auto magnitudes = product_magnitudes(x, decoded(w), c.rows, c.outputs, c.inputs, dtype);
    for (const DType out : std::set{DType::kF32, activation_}) {
      const auto got = run_linear(*backend_, w, x, old, c.rows, c.accumulate, out);
      std::vector<double> bound;
      for (size_t i = 0; i < want.size(); ++i) {
        bound.push_back(magnitudes[i] * product_error(c.inputs, dtype) +
                        0x1p-22 * std::fabs(old[i]) + storage_error(out) * std::fabs(want[i]) +
                        1e-30);
      }
      expect_close(got, want, bound,
                   "linear " + std::to_string(c.rows) + "x" + std::to_string(c.outputs) + "x" +
                       std::to_string(c.inputs) + " format " + std::to_string(int(c.format)) +
                       " out " + std::to_string(int(out)));
    }
  }
}

TEST_P(BackendTest, LinearRowsDoNotDependOnEachOther) {
  const int64_t most = std::min<int64_t>(70, backend_->wide_rows() - 1);
  for (const auto& [outputs, inputs] :
       {std::pair<int64_t, int64_t>{704, 256}, {63, 272}, {24, 2320}}) {
    for (const Format format : {Format::kBF16, Format::kNvfp4, Format::kFp8, Format::kInt4}) {
      const Weight w = random_weight("w", Use::kLinear, format, 1, outputs, inputs, random_);
      const auto x = activations(most * inputs);
      const auto product = [&](int64_t first, int64_t rows) {
        const std::vector<float> part(x.begin() + first * inputs,
                                      x.begin() + (first + rows) * inputs);
        return run_linear(*backend_, w, part, std::vector<float>(size_t(rows * outputs), 0.0f),
                          rows, false);
      };
      const auto all = product(0, most);
      for (const auto& [first, rows] : {std::pair<int64_t, int64_t>{3, 40}, {most - 9, 9}}) {
        const auto some = product(first, std::min(rows, most - first));
        for (size_t i = 0; i < some.size(); ++i) {
          ASSERT_EQ(some[i], all[size_t(first * outputs) + i]) << rows << " rows from " << first;
        }
      }
      for (int64_t t = 0; t < most; ++t) {
        const auto alone = product(t, 1);
        for (int64_t n = 0; n < outputs; ++n) {
          ASSERT_EQ(alone[size_t(n)], all[size_t(t * outputs + n)]) << "row " << t << " out " << n;
        }
      }
    }
  }
}

TEST_P(BackendTest, LinearWritesIntoColumnsOfAWiderTensor) {
  const Weight host = random_weight("w", Use::kLinear, Format::kBF16, 1, 20, 32, random_);
  const auto x = activations(3 * 40);
  const auto run = [&](Backend& backend) {
    const Weight w = backend.upload(host);
    const DType dtype = backend.activation_dtype();
    DeviceMatrix in(backend, 3, 40, x, dtype);
    DeviceMatrix out(backend, 3, 50, std::vector<float>(150, 9.0f), dtype);
    backend.linear(in.tensor().columns(8, 32), w, out.tensor().columns(16, 20));
    return out.floats();
  };
  const auto want = run(reference_), got = run(*backend_);
  for (size_t i = 0; i < got.size(); ++i) {
    const bool inside = i % 50 >= 16 && i % 50 < 36;
    if (inside) {
      EXPECT_NEAR(got[i], want[i], 0.05) << i;
    } else {
      EXPECT_EQ(got[i], 9.0f) << i;
    }
  }
}

// The elements that matter are exact, all others within an INT8 step.
void expect_head(Backend& backend, const Weight& host, const std::vector<float>& x, int64_t rows,
                 bool all_exact) {
  ReferenceBackend reference;
  const std::vector<float> zero(size_t(rows * host.rows), 0.0f);
  const auto want = run_linear(reference, host, x, zero, rows, false, DType::kF32);
  const auto got = run_linear(backend, host, x, zero, rows, false, DType::kF32);
  const auto w = decoded(host);
  const DType dtype = backend.product_input_dtype(host.parts[0].format);
  auto bound = product_magnitudes(x, w, rows, host.rows, host.cols, dtype);
  for (double& b : bound) b = b * product_error(host.cols, dtype) + 1e-30;
  auto loose = bound;
  for (int64_t t = 0; t < rows; ++t) {
    double sum = 0;
    for (int64_t k = 0; k < host.cols; ++k) sum += std::fabs(double(x[size_t(t * host.cols + k)]));
    for (int64_t n = 0; n < host.rows; ++n) {
      float most = 0;
      for (int64_t k = 0; k < host.cols; ++k) {
        most = std::max(most, std::fabs(w[size_t(n * host.cols + k)]));
      }
      loose[size_t(t * host.rows + n)] += kHeadStep * sum * double(most);
    }
    const auto best =
        std::max_element(want.begin() + t * host.rows, want.begin() + (t + 1) * host.rows) -
        want.begin();
    EXPECT_NEAR(got[size_t(best)], want[size_t(best)], bound[size_t(best)]);
    for (int64_t i = t * host.rows; i < (t + 1) * host.rows; ++i) {
      EXPECT_LE(got[size_t(i)], got[size_t(best)] + 2 * bound[size_t(best)]) << "row " << t;
    }
  }
  expect_close(got, want, all_exact ? bound : loose,
               "head of " + std::to_string(host.rows) + "x" + std::to_string(host.cols));
}

TEST_P(BackendTest, HeadIsExactWhereItMatters) {
  for (const Format format : {Format::kBF16, Format::kNvfp4}) {
    for (const auto& [rows, outputs, inputs] :
         {std::array<int64_t, 3>{0, 48, 64}, {1, 6144, 256}, {3, 1000, 208}, {21, 77, 2048}}) {
      const Weight w = random_weight("w", Use::kHead, format, 1, outputs, inputs, random_);
      expect_head(*backend_, w, activations(rows * inputs), rows, false);
    }
  }
}

TEST_P(BackendTest, HeadWithManyEqualRowsIsExact) {
  const auto row = random_floats(96, random_);
  std::vector<float> values;
  for (int n = 0; n < 700; ++n) values.insert(values.end(), row.begin(), row.end());
  Weight w = float_weight("w", values);
  w.use = Use::kHead;
  w.rows = w.parts[0].rows = 700;
  w.cols = 96;
  expect_head(*backend_, w, activations(2 * 96), 2, true);
}

TEST_P(BackendTest, HeadRowsDoNotDependOnEachOther) {
  const Weight w = random_weight("w", Use::kHead, Format::kBF16, 1, 500, 272, random_);
  const auto x = activations(9 * 272);
  const auto all = run_linear(*backend_, w, x, std::vector<float>(9 * 500), 9, false, DType::kF32);
  for (int64_t t = 0; t < 9; ++t) {
    const auto alone = run_linear(*backend_, w, {x.begin() + t * 272, x.begin() + (t + 1) * 272},
                                  std::vector<float>(500), 1, false, DType::kF32);
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), all.begin() + t * 500)) << "row " << t;
  }
}

TEST_P(BackendTest, AddRmsNorm) {
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 256}, {3, 128}, {7, 100}, {0, 64}, {2, 2048}, {1, 5}}) {
    for (const bool with_delta : {false, true}) {
      const Weight gain = random_weight("g", Use::kVector, Format::kBF16, 1, 1, cols, random_);
      // With a delta x is the residual stream, else an activation.
      const auto x =
          with_delta ? random_floats(rows * cols, random_, 1000) : activations(rows * cols, 1000);
      const auto d = activations(rows * cols);
      const auto run = [&](Backend& backend, std::vector<float>& stream) {
        const Weight g = backend.upload(gain);
        const DType dtype = backend.activation_dtype();
        DeviceMatrix a(backend, rows, cols, x, with_delta ? DType::kF32 : dtype);
        DeviceMatrix b(backend, rows, cols, d, dtype), out(backend, rows, cols, dtype);
        backend.add_rms_norm(a.tensor(), with_delta ? b.tensor() : Tensor(), g, 1e-5f,
                             out.tensor());
        stream = a.floats();
        return out.floats();
      };
      std::vector<float> want_stream, got_stream;
      const auto want = run(reference_, want_stream), got = run(*backend_, got_stream);
      EXPECT_EQ(got_stream, want_stream);
      std::vector<double> bound;
      for (const float v : want) {
        const double error =
            double(cols + 4) * 0x1p-24 + kFunctionError + storage_error(activation_);
        bound.push_back(error * std::fabs(v) + 1e-30);
      }
      expect_close(got, want, bound, "add_rms_norm of " + std::to_string(cols));
    }
  }
}

TEST_P(BackendTest, EmbedAndGatherCopyRows) {
  for (const Format format :
       {Format::kBF16, Format::kNvfp4, Format::kF32, Format::kFp8, Format::kInt4}) {
    const Weight host = random_weight("e", Use::kTable, format, 1, 50, 64, random_);
    const Batch batch{
        .tokens = {3, 49, 0, 3}, .segments = {{0, 4, 0, 0}}, .pages = {0}, .logit_rows = {1, 3}};
    const auto run = [&](Backend& backend) {
      const Weight table = backend.upload(host);
      DeviceMatrix x(backend, 4, 64), rows(backend, 2, 64);
      backend.begin_step(batch);
      backend.embed(table, batch, x.tensor());
      backend.gather_rows(x.tensor(), batch, rows.tensor());
      return rows.floats();
    };
    EXPECT_EQ(run(*backend_), run(reference_));
  }
}

TEST_P(BackendTest, SiluMul) {
  for (const auto& [rows, width] :
       {std::pair<int64_t, int64_t>{1, 64}, {3, 17}, {0, 8}, {5, 768}}) {
    auto values = activations(rows * 2 * width, 8);
    if (rows == 1) values[0] = -200, values[1] = 200, values[2] = 0;
    const auto run = [&](Backend& backend) {
      const DType dtype = backend.activation_dtype();
      DeviceMatrix in(backend, rows, 2 * width, values, dtype), out(backend, rows, width, dtype);
      backend.silu_mul(in.tensor(), out.tensor());
      return out.floats();
    };
    const auto want = run(reference_), got = run(*backend_);
    std::vector<double> bound;
    for (const float v : want) {
      bound.push_back((4 * kFunctionError + storage_error(activation_)) * std::fabs(v) + 1e-30);
    }
    expect_close(got, want, bound, "silu_mul");
  }
}

struct RoutingResult {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

RoutingResult run_route(Backend& backend, const Weight& router, const Weight& bias,
                        const RouterShape& shape, const std::vector<float>& x, int64_t rows) {
  const Weight w = backend.upload(router), b = backend.upload(bias);
  DeviceMatrix in(backend, rows, router.cols, x, backend.activation_dtype());
  const int columns = shape.top_k + shape.num_shared;
  DeviceMatrix experts(backend, rows, columns, DType::kI32), weights(backend, rows, columns);
  backend.route(in.tensor(), w, b, shape, {experts.tensor(), weights.tensor()});
  return {experts.ints(), weights.floats()};
}

TEST_P(BackendTest, Route) {
  for (const auto& [rows, experts] :
       {std::pair<int64_t, int>{1, 16}, {9, 64}, {33, 48}, {0, 16}, {4, 5}}) {
    const RouterShape shape{
        .num_experts = experts, .top_k = 4, .num_shared = experts % 3, .scaling = 1.8f};
    const Weight router = random_weight("r", Use::kRouter, Format::kBF16, 1, experts, 256, random_);
    const Weight bias = random_weight("b", Use::kVector, Format::kF32, 1, 1, experts, random_);
    const auto x = activations(rows * 256);
    const auto want = run_route(reference_, router, bias, shape, x, rows);
    const auto got = run_route(*backend_, router, bias, shape, x, rows);
    EXPECT_EQ(got.experts, want.experts);
    std::vector<double> bound(want.weights.size(), 258 * 0x1p-24 * 1.8 + 1e-5);
    expect_close(got.weights, want.weights, bound, "route");
  }
}

TEST_P(BackendTest, RouteTakesTheLowestIdsOfEquals) {
  const RouterShape shape{.num_experts = 20, .top_k = 3, .scaling = 1.0f};
  Weight router = float_weight("r", std::vector<float>(20 * 32, 0.0f));
  router.use = Use::kRouter;
  router.rows = router.parts[0].rows = 20;
  router.cols = 32;
  const Weight bias = float_weight("b", std::vector<float>(20, 0.0f));
  const auto got = run_route(*backend_, router, bias, shape, activations(2 * 32), 2);
  EXPECT_EQ(got.experts, (std::vector<int32_t>{0, 1, 2, 0, 1, 2}));
  for (const float w : got.weights) EXPECT_NEAR(w, 1.0 / 3, 1e-6);
}

struct ExpertsInput {
  std::vector<float> x, weights;
  std::vector<int32_t> experts;
};

std::vector<float> run_experts(Backend& backend, const ExpertsCase& c, const Weight& gate_up,
                               const Weight& down, const ExpertsInput& input, int64_t first,
                               int64_t rows, const std::function<void(Tensor)>& then = {}) {
  const Weight g = backend.upload(gate_up), d = backend.upload(down);
  const DType dtype = backend.activation_dtype();
  DeviceMatrix x(backend, rows, c.hidden,
                 {input.x.begin() + first * c.hidden, input.x.begin() + (first + rows) * c.hidden},
                 dtype);
  DeviceMatrix ids(backend, rows, c.top_k, DType::kI32);
  backend.write(ids.tensor().data, input.experts.data() + first * c.top_k,
                size_t(rows * c.top_k) * sizeof(int32_t));
  DeviceMatrix weights(
      backend, rows, c.top_k,
      {input.weights.begin() + first * c.top_k, input.weights.begin() + (first + rows) * c.top_k});
  DeviceMatrix out(backend, rows, c.hidden, dtype);
  backend.experts(x.tensor(), {ids.tensor(), weights.tensor()}, g, d, out.tensor());
  if (then) then(out.tensor());
  return out.floats();
}

ExpertsInput random_experts_input(const ExpertsCase& c, DType dtype, std::mt19937& random) {
  ExpertsInput input{.x = random_activations(c.rows * c.hidden, dtype, random),
                     .weights = absolute(random_floats(c.rows * c.top_k, random)),
                     .experts = {}};
  for (int64_t t = 0; t < c.rows; ++t) {
    std::vector<int32_t> ids(size_t(c.num_experts));
    for (int e = 0; e < c.num_experts; ++e) ids[size_t(e)] = e;
    std::shuffle(ids.begin(), ids.end(), random);
    input.experts.insert(input.experts.end(), ids.begin(), ids.begin() + c.top_k);
  }
  return input;
}

// |silu(g) u| <= |g| |u| and silu is 1.1-Lipschitz, so the error of the inner value is at most
// (1.1 + 1) e1 * G U + e_f G U with G, U the magnitudes of both products; the second product adds
// its own e2 over the same magnitudes.
std::vector<double> experts_bound(const ExpertsCase& c, const Weight& gate_up, const Weight& down,
                                  const ExpertsInput& input, DType input_dtype) {
  const auto g = decoded(gate_up), d = decoded(down);
  const double e1 = product_error(c.hidden, input_dtype), e2 = product_error(c.width, input_dtype);
  std::vector<double> bound(size_t(c.rows * c.hidden), 1e-30);
  for (int64_t t = 0; t < c.rows; ++t) {
    const std::vector<float> x(input.x.begin() + t * c.hidden,
                               input.x.begin() + (t + 1) * c.hidden);
    for (int k = 0; k < c.top_k; ++k) {
      const int64_t e = input.experts[size_t(t * c.top_k + k)];
      const std::vector<float> w(g.begin() + e * 2 * c.width * c.hidden,
                                 g.begin() + (e + 1) * 2 * c.width * c.hidden);
      const auto magnitudes = product_magnitudes(x, w, 1, 2 * c.width, c.hidden, input_dtype);
      std::vector<float> inner;
      for (int64_t i = 0; i < c.width; ++i) {
        inner.push_back(float(magnitudes[size_t(i)] * magnitudes[size_t(i + c.width)]));
      }
      const std::vector<float> rows(d.begin() + e * c.hidden * c.width,
                                    d.begin() + (e + 1) * c.hidden * c.width);
      const auto sums = product_magnitudes(inner, rows, 1, c.hidden, c.width, input_dtype);
      for (int64_t n = 0; n < c.hidden; ++n) {
        bound[size_t(t * c.hidden + n)] += input.weights[size_t(t * c.top_k + k)] *
                                           sums[size_t(n)] *
                                           (2.2 * e1 + 1.1 * e2 + 8 * kFunctionError);
      }
    }
  }
  return bound;
}

TEST_P(BackendTest, Experts) {
  for (const ExpertsCase& c : experts_cases()) {
    const Weight gate_up = random_weight("gate_up", Use::kGatedExperts, c.format, c.num_experts,
                                         2 * c.width, c.hidden, random_, c.input_scales);
    const Weight down = random_weight("down", Use::kExperts, c.format, c.num_experts, c.hidden,
                                      c.width, random_, c.input_scales);
    const ExpertsInput input = random_experts_input(c, activation_, random_);
    const auto want = run_experts(reference_, c, gate_up, down, input, 0, c.rows);
    const auto got = run_experts(*backend_, c, gate_up, down, input, 0, c.rows);
    auto bound = experts_bound(c, gate_up, down, input, backend_->product_input_dtype(c.format));
    for (size_t i = 0; i < bound.size(); ++i) {
      bound[i] += storage_error(activation_) * std::fabs(want[i]);
    }
    expect_close(got, want, bound, "experts with " + std::to_string(c.rows) + " rows");
    if (c.rows >= backend_->wide_rows()) continue;
    for (int64_t t = 0; t < std::min<int64_t>(c.rows, 12); ++t) {
      const auto alone = run_experts(*backend_, c, gate_up, down, input, t, 1);
      for (int64_t i = 0; i < c.hidden; ++i) {
        ASSERT_EQ(alone[size_t(i)], got[size_t(t * c.hidden + i)]) << "row " << t;
      }
    }
  }
}

// A backend may leave part of the experts to the norm that adds their output to the stream.
TEST_P(BackendTest, NormAfterExpertsIsTheNormOfTheirOutput) {
  const ExpertsCase c{40, 16, 4, 256, 64, Format::kNvfp4};
  const Weight gate_up = random_weight("g", Use::kGatedExperts, c.format, 16, 128, 256, random_);
  const Weight down = random_weight("d", Use::kExperts, c.format, 16, 256, 64, random_);
  const Weight gain = backend_->upload(float_weight("n", std::vector<float>(256, 1.5f)));
  const ExpertsInput input = random_experts_input(c, activation_, random_);
  DeviceMatrix sum(*backend_, 40, 256), sum_after(*backend_, 40, 256);
  DeviceMatrix norm(*backend_, 40, 256, activation_), norm_after(*backend_, 40, 256, activation_);
  const auto out = run_experts(*backend_, c, gate_up, down, input, 0, 40, [&](Tensor delta) {
    backend_->add_rms_norm(sum.tensor(), delta, gain, 1e-5f, norm.tensor());
  });
  DeviceMatrix delta(*backend_, 40, 256, out, activation_);
  backend_->add_rms_norm(sum_after.tensor(), delta.tensor(), gain, 1e-5f, norm_after.tensor());
  EXPECT_EQ(sum.floats(), sum_after.floats());
  EXPECT_EQ(norm.floats(), norm_after.floats());
}

TEST_P(BackendTest, ReplayRunsTheStep) {
  int calls = 0;
  backend_->replay(1, [&] { ++calls; });
  EXPECT_EQ(calls, 1);
}

TEST_P(BackendTest, AReplayedStepReadsTheBatchAtHand) {
  const Weight table =
      backend_->upload(random_weight("e", Use::kTable, Format::kBF16, 1, 50, 64, random_));
  const Weight w =
      backend_->upload(random_weight("w", Use::kLinear, Format::kBF16, 1, 48, 64, random_));
  const Weight gain = backend_->upload(float_weight("g", std::vector<float>(64, 1.0f)));
  DeviceMatrix x(*backend_, 2, 64), h(*backend_, 2, 64, activation_), out(*backend_, 2, 48);
  const auto run = [&](uint64_t key, const Batch& batch) {
    backend_->begin_step(batch);
    backend_->replay(key, [&] {
      backend_->embed(table, batch, x.tensor());
      backend_->add_rms_norm(x.tensor(), {}, gain, 1e-5f, h.tensor());
      backend_->linear(h.tensor(), w, out.tensor());
    });
    return out.floats();
  };
  for (const int32_t token : {7, 3, 49, 7, 11}) {
    const Batch batch{.tokens = {token, int32_t(token / 2)},
                      .segments = {{0, 1, 5, 0}, {1, 1, 9, 0}},
                      .pages = {0},
                      .logit_rows = {0, 1}};
    const auto want = run(0, batch);
    EXPECT_EQ(run(1, batch), want) << "token " << token;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, BackendTest,
                         testing::Values("reference", "cpu", "cpu_exact", "cuda"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace nibble
