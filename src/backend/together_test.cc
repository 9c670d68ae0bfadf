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

struct QueriesCase {
  int rows, heads, rank;  // rows: a sequence each
  KvFormat kv_format;
  int context;
  Format format = Format::kNvfp4;  // of q_b and kv_b
};

struct QueriesResult {
  std::vector<float> norm, q, out;
  std::vector<uint8_t> cache;
};

struct QueriesWeights {
  Weight norm_gain, q_b, store_gain, kv_b;
};

QueriesResult run(Backend& backend, const QueriesCase& c, const QueriesWeights& w,
                  const std::vector<float>& latent, const std::vector<float>& records, bool apart) {
  const MlaShape shape = mla_shape({c.heads, c.kv_format, 16, {}});
  const DType dtype = backend.activation_dtype();
  KvLayer cache{.format = c.kv_format,
                .page_size = 16,
                .width = shape.record_dim(),
                .latent = shape.latent_dim};
  const int pages = c.context / cache.page_size + 1;
  Batch fill, batch;
  for (int p = 0; p < pages * c.rows; ++p) batch.pages.push_back(pages * c.rows - 1 - p);
  fill.pages = batch.pages;
  fill.tokens.resize(size_t(c.rows * c.context));
  batch.tokens.resize(size_t(c.rows));
  for (int s = 0; s < c.rows; ++s) {
    fill.segments.push_back({s * c.context, c.context, 0, s * pages});
    batch.segments.push_back({s, 1, c.context, s * pages});
  }
  const size_t bytes = size_t(kv_page_bytes(cache) * pages * c.rows);
  cache.data = backend.allocate(bytes);
  const int64_t filled = int64_t(c.rows) * c.context * shape.record_dim();
  DeviceMatrix before(backend, c.rows * c.context, shape.record_dim(),
                      {records.begin(), records.begin() + filled}, dtype);
  DeviceMatrix kv(backend, c.rows, shape.record_dim(), {records.begin() + filled, records.end()},
                  dtype);
  DeviceMatrix x(backend, c.rows, c.rank, latent, dtype), norm(backend, c.rows, c.rank, dtype);
  DeviceMatrix q(backend, c.rows, c.heads * shape.query_dim(), dtype);
  DeviceMatrix out(backend, c.rows, c.heads * shape.value_dim, dtype);
  backend.begin_step(fill);
  backend.mla_store(before.tensor(), w.store_gain, shape, fill, cache);
  backend.begin_step(batch);
  backend.add_rms_norm(x.tensor(), {}, w.norm_gain, 1e-6f, norm.tensor());
  if (apart) norm.floats();
  backend.linear(norm.tensor(), w.q_b, q.tensor(), /*accumulate=*/false);
  if (apart) q.floats();
  backend.mla_store(kv.tensor(), w.store_gain, shape, batch, cache);
  if (apart) q.floats();
  backend.mla_attention(q.tensor(), w.kv_b, shape, batch, cache, out.tensor());
  QueriesResult result{norm.floats(), q.floats(), out.floats(), std::vector<uint8_t>(bytes)};
  backend.read(cache.data, result.cache.data(), bytes);
  backend.free(cache.data);
  return result;
}

TEST_P(TogetherTest, QueriesStoreAndAttention) {
  for (const QueriesCase& c :
       {QueriesCase{1, 20, 768, KvFormat::kInt8, 1000}, QueriesCase{1, 20, 768, KvFormat::kBF16, 0},
        QueriesCase{1, 20, 768, KvFormat::kFp8, 37}, QueriesCase{1, 3, 768, KvFormat::kNvfp4, 200},
        QueriesCase{1, 1, 1024, KvFormat::kF32, 65}, QueriesCase{1, 4, 256, KvFormat::kBF16, 20},
        QueriesCase{1, 2, 768, KvFormat::kInt8, 20, Format::kBF16},
        QueriesCase{2, 20, 768, KvFormat::kInt8, 70}}) {
    const MlaShape shape = mla_shape({c.heads, c.kv_format, 16, {}});
    const DType dtype = backend_->activation_dtype();
    const auto weight = [&](const char* name, Use use, Format format, int64_t count, int64_t rows,
                            int64_t cols) {
      Weight w = random_weight(name, use, format, count, rows, cols, random_);
      if (use == Use::kLatentUp) w.key_rows = shape.nope_dim;
      return backend_->upload(w);
    };
    const QueriesWeights w{
        .norm_gain = weight("n", Use::kVector, Format::kF32, 1, 1, c.rank),
        .q_b = weight("q", Use::kLinear, c.format, 1, c.heads * shape.query_dim(), c.rank),
        .store_gain = weight("s", Use::kVector, Format::kF32, 1, 1, shape.latent_dim),
        .kv_b = weight("u", Use::kLatentUp, c.format, c.heads, shape.nope_dim + shape.value_dim,
                       shape.latent_dim)};
    const auto latent = random_activations(c.rows * c.rank, dtype, random_);
    const auto records =
        random_activations(c.rows * (c.context + 1) * shape.record_dim(), dtype, random_);
    const QueriesResult want = run(*backend_, c, w, latent, records, /*apart=*/true);
    const QueriesResult got = run(*backend_, c, w, latent, records, /*apart=*/false);
    const std::string what = std::to_string(c.rows) + " rows, " + std::to_string(c.heads) +
                             " heads, rank " + std::to_string(c.rank) + ", cache format " +
                             std::to_string(int(c.kv_format));
    EXPECT_EQ(bits_of(got.norm), bits_of(want.norm)) << what;
    EXPECT_EQ(bits_of(got.q), bits_of(want.q)) << what;
    EXPECT_EQ(got.cache, want.cache) << what;
    EXPECT_EQ(bits_of(got.out), bits_of(want.out)) << what;
    EXPECT_NE(got.out, std::vector<float>(got.out.size(), 0)) << what;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, TogetherTest, testing::Values("cpu", "cuda"));

}  // namespace
}  // namespace nibble
