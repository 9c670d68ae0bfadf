// Operations that a backend may hold back and take together leave what they leave one by one, bit
// for bit.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "backend/cases.h"

namespace nibble {
namespace {

class TogetherTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!is_here(GetParam())) GTEST_SKIP() << "no CUDA device here";
    backend_ = test_backend(GetParam());
    random_.seed(7);
  }
  std::unique_ptr<Backend> backend_;
  std::mt19937 random_;
};

struct RoutedCase {
  int64_t rows, hidden, width;
  int num_experts, top_k, num_shared;
  bool has_delta = true, has_ties = false, has_nan = false;
};

struct RoutedResult {
  std::vector<float> sum, norm, weights, out;
  std::vector<int32_t> experts;
};

struct RoutedWeights {
  Weight gain, router, bias, gate_up, down;
};

RoutedWeights random_weights(Backend& backend, const RoutedCase& c, std::mt19937& random) {
  const int all = c.num_experts + c.num_shared;
  const auto upload = [&](const char* name, Use use, Format format, int64_t count, int64_t rows,
                          int64_t cols) {
    return backend.upload(random_weight(name, use, format, count, rows, cols, random));
  };
  return {
      .gain = upload("n", Use::kVector, Format::kF32, 1, 1, c.hidden),
      .router = upload("r", Use::kRouter, Format::kBF16, 1, c.num_experts, c.hidden),
      .bias = c.has_ties ? backend.upload(float_weight("b", std::vector<float>(c.num_experts)))
                         : upload("b", Use::kVector, Format::kF32, 1, 1, c.num_experts),
      .gate_up = upload("g", Use::kGatedExperts, Format::kNvfp4, all, 2 * c.width, c.hidden),
      .down = upload("d", Use::kExperts, Format::kNvfp4, all, c.hidden, c.width),
  };
}

// Reading between operations takes them apart.
RoutedResult run(Backend& backend, const RoutedCase& c, const RoutedWeights& w,
                 const std::vector<float>& x, const std::vector<float>& delta, bool apart) {
  const DType dtype = backend.activation_dtype();
  const int slots = c.top_k + c.num_shared;
  const RouterShape shape{
      .num_experts = c.num_experts, .top_k = c.top_k, .num_shared = c.num_shared, .scaling = 1.8f};
  DeviceMatrix sum(backend, c.rows, c.hidden, x), add(backend, c.rows, c.hidden, delta, dtype);
  DeviceMatrix norm(backend, c.rows, c.hidden, dtype), out(backend, c.rows, c.hidden, dtype);
  DeviceMatrix ids(backend, c.rows, slots, DType::kI32), weights(backend, c.rows, slots);
  const Routing routing{ids.tensor(), weights.tensor(), c.num_shared};
  backend.add_rms_norm(sum.tensor(), c.has_delta ? add.tensor() : Tensor{}, w.gain, 1e-5f,
                       norm.tensor());
  if (apart) norm.floats();
  backend.route(norm.tensor(), w.router, w.bias, shape, routing);
  if (apart) ids.ints();
  backend.experts(norm.tensor(), routing, w.gate_up, w.down, out.tensor());
  return {sum.floats(), norm.floats(), weights.floats(), out.floats(), ids.ints()};
}

std::vector<uint32_t> bits_of(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (const float v : values)
    bits.push_back(std::isnan(v) ? 0x7fc00000u : std::bit_cast<uint32_t>(v));
  return bits;
}

TEST_P(TogetherTest, NormRouteAndExperts) {
  for (const RoutedCase& c :
       {RoutedCase{1, 2048, 256, 48, 4, 1}, RoutedCase{1, 256, 64, 16, 4, 1},
        RoutedCase{1, 1024, 128, 64, 8, 0}, RoutedCase{1, 768, 64, 5, 5, 2},
        RoutedCase{1, 2048, 64, 48, 4, 1, false}, RoutedCase{1, 512, 64, 33, 4, 1, true, true},
        RoutedCase{1, 512, 64, 33, 4, 1, true, false, true}, RoutedCase{1, 256, 64, 65, 4, 1},
        RoutedCase{3, 2048, 64, 48, 4, 1}}) {
    const RoutedWeights w = random_weights(*backend_, c, random_);
    auto x = random_floats(c.rows * c.hidden, random_);
    auto delta = random_activations(c.rows * c.hidden, backend_->activation_dtype(), random_);
    if (c.has_ties) std::fill(x.begin(), x.end(), 0.0f), delta = x;
    if (c.has_nan) x[1] = NAN;
    const RoutedResult want = run(*backend_, c, w, x, delta, /*apart=*/true);
    const RoutedResult got = run(*backend_, c, w, x, delta, /*apart=*/false);
    const std::string what =
        std::to_string(c.num_experts) + " experts of " + std::to_string(c.hidden) + " columns";
    EXPECT_EQ(got.experts, want.experts) << what;
    EXPECT_EQ(bits_of(got.sum), bits_of(want.sum)) << what;
    EXPECT_EQ(bits_of(got.norm), bits_of(want.norm)) << what;
    EXPECT_EQ(bits_of(got.weights), bits_of(want.weights)) << what;
    EXPECT_EQ(bits_of(got.out), bits_of(want.out)) << what;
    // What one by one is, is backend_test's; but nothing must be left as it was.
    EXPECT_NE(got.experts, std::vector<int32_t>(got.experts.size(), 0)) << what;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, TogetherTest, testing::Values("cpu", "cuda"));

}  // namespace
}  // namespace nibble
