// mla_store and mla_attention of a sibling against reference/.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cases.h"
#include "backend/create.h"
#include "backend/reference/reference_backend.h"
#include "base/numbers.h"

namespace nibble {
namespace {

// The case as a batch whose page tables are shuffled; `contexts` alone (to fill the cache) or
// segments.
struct Scene {
  Batch fill, batch;
  int num_pages = 0;
};

Scene scene_of(const AttentionCase& c, std::mt19937& random) {
  Scene scene;
  for (const auto& [context, rows] : c.segments) {
    scene.num_pages += (context + rows + c.page_size - 1) / c.page_size;
  }
  std::vector<int32_t> free(size_t(scene.num_pages));
  for (int i = 0; i < scene.num_pages; ++i) free[size_t(i)] = i;
  std::shuffle(free.begin(), free.end(), random);
  for (const auto& [context, rows] : c.segments) {
    const int first_page = int(scene.batch.pages.size());
    for (int t = 0; t < context + rows; t += c.page_size) {
      scene.batch.pages.push_back(free.back());
      free.pop_back();
    }
    scene.fill.segments.push_back({scene.fill.rows(), context, 0, first_page});
    scene.batch.segments.push_back({scene.batch.rows(), rows, context, first_page, c.expanded});
    scene.fill.tokens.resize(size_t(scene.fill.rows() + context));
    scene.batch.tokens.resize(size_t(scene.batch.rows() + rows));
  }
  scene.fill.pages = scene.batch.pages;
  return scene;
}

struct Inputs {
  Weight gain, kv_b;
  std::vector<float> fill_kv, kv, q;
};

Inputs inputs_of(const AttentionCase& c, const Scene& scene, DType dtype, std::mt19937& random) {
  const MlaShape s = mla_shape(c);
  Inputs inputs = {
      .gain = float_weight("gain", random_floats(512, random)),
      .kv_b = random_weight("kv_b", Use::kLatentUp, c.format, c.heads, 448, 512, random,
                            c.input_scales),
      .fill_kv = random_activations(scene.fill.rows() * s.record_dim(), dtype, random, 2),
      .kv = random_activations(scene.batch.rows() * s.record_dim(), dtype, random, 2),
      .q = random_activations(scene.batch.rows() * c.heads * s.query_dim(), dtype, random)};
  inputs.kv_b.key_rows = s.nope_dim;
  return inputs;
}

KvLayer layer_of(const AttentionCase& c) {
  const MlaShape s = mla_shape(c);
  return {.format = c.kv_format,
          .page_size = c.page_size,
          .width = s.record_dim(),
          .latent = s.latent_dim};
}

struct Result {
  std::vector<uint8_t> cache;
  std::vector<float> out;  // empty where nothing attends
};

struct RunOptions {
  bool attends = true;
  const std::vector<uint8_t>* records = nullptr;  // attended to instead of the stored ones
};

// Stores and attends. A value at a rounding border may be stored either way, so siblings are
// compared over the records of one of them.
Result run(Backend& backend, const AttentionCase& c, const Scene& scene, const Inputs& in,
           const RunOptions& options = {}) {
  const MlaShape s = mla_shape(c);
  KvLayer cache = layer_of(c);
  const size_t bytes = size_t(kv_page_bytes(cache) * scene.num_pages);
  cache.data = backend.allocate(bytes);
  const Weight gain = backend.upload(in.gain), kv_b = backend.upload(in.kv_b);
  const DType dtype = backend.activation_dtype();
  DeviceMatrix fill_kv(backend, scene.fill.rows(), s.record_dim(), in.fill_kv, dtype);
  DeviceMatrix kv(backend, scene.batch.rows(), s.record_dim(), in.kv, dtype);
  DeviceMatrix q(backend, scene.batch.rows(), c.heads * s.query_dim(), in.q, dtype);
  DeviceMatrix out(backend, scene.batch.rows(), c.heads * s.value_dim, dtype);
  backend.begin_step(scene.fill);
  backend.mla_store(fill_kv.tensor(), gain, s, scene.fill, cache);
  backend.begin_step(scene.batch);
  backend.mla_store(kv.tensor(), gain, s, scene.batch, cache);
  if (options.records != nullptr) backend.write(cache.data, options.records->data(), bytes);
  if (options.attends) {
    backend.mla_attention(q.tensor(), kv_b, s, scene.batch, cache, out.tensor());
  }
  Result result{.cache = std::vector<uint8_t>(bytes), .out = out.floats()};
  backend.read(cache.data, result.cache.data(), bytes);
  backend.free(cache.data);
  return result;
}

// One rounding step of value `k` of a record. Formats with a scale: a step of the largest value
// that shares it (E2M1's widest is a third of that).
double rounding_step(const KvLayer& layer, const std::vector<float>& record, int k) {
  const auto largest = [&](int first, int last) {
    double value = 0;
    for (int i = first; i < last; ++i)
      value = std::max(value, double(std::fabs(record[size_t(i)])));
    return value;
  };
  const bool in_latent = k < layer.latent;
  const double value = std::fabs(record[size_t(k)]);
  switch (layer.format) {
    case KvFormat::kF32:
      return value * 1e-6 + 0x1p-9;
    case KvFormat::kBF16:
      return value * 0x1p-7 + 0x1p-9;
    case KvFormat::kFp8:
      return value * 0x1p-3 + 0x1p-9;
    case KvFormat::kNvfp4:
      if (in_latent) return largest(k / 16 * 16, k / 16 * 16 + 16) / 3 + 0x1p-9;
      [[fallthrough]];
    case KvFormat::kInt8:
      return largest(in_latent ? 0 : layer.latent, in_latent ? layer.latent : layer.width) / 120;
  }
  return 0;
}

KvLayer layer_at(const AttentionCase& c, const std::vector<uint8_t>& memory) {
  KvLayer layer = layer_of(c);
  layer.data = const_cast<uint8_t*>(memory.data());  // read only
  return layer;
}

class AttentionTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!is_here(GetParam())) GTEST_SKIP() << "no CUDA device here";
    backend_ = test_backend(GetParam());
  }
  ReferenceBackend reference_;
  std::unique_ptr<Backend> backend_;
  std::mt19937 random_{11};
};

TEST_P(AttentionTest, StoreWritesTheSameRecords) {
  for (AttentionCase c : attention_cases()) {
    c.heads = 1;  // a record is of all heads
    const Scene scene = scene_of(c, random_);
    const Inputs in = inputs_of(c, scene, backend_->activation_dtype(), random_);
    const auto want = run(reference_, c, scene, in, {.attends = false}).cache;
    const auto got = run(*backend_, c, scene, in, {.attends = false}).cache;
    const KvLayer a_layer = layer_at(c, want), b_layer = layer_at(c, got);
    std::vector<float> a(size_t(a_layer.width)), b(a);
    int64_t differing = 0, values = 0;
    for (int64_t i = 0; i < scene.num_pages * c.page_size; ++i) {
      const KvRecord at = kv_record(a_layer, i / c.page_size, i % c.page_size);
      const KvRecord bt = kv_record(b_layer, i / c.page_size, i % c.page_size);
      decode_record(a_layer, at, a.data());
      decode_record(b_layer, bt, b.data());
      const bool same_scales =
          std::memcmp(at.scales, bt.scales, size_t(kv_scale_bytes(a_layer))) == 0;
      for (int k = 0; k < a_layer.width; ++k, ++values) {
        // A value at a rounding border may fall to either side; more than one step is an error.
        differing += same_scales && a[size_t(k)] != b[size_t(k)];
        ASSERT_NEAR(a[size_t(k)], b[size_t(k)], rounding_step(a_layer, a, k))
            << "record " << i << ", value " << k;
      }
    }
    if (c.kv_format != KvFormat::kF32) {
      EXPECT_LE(differing, values / 500);
    }
  }
}

// The largest magnitude that the blocks of an NVFP4 weight can hold.
double largest_value(const Weight& w) {
  double largest = 0;
  for (const WeightPart& part : w.parts) {
    for (int64_t i = 0; i < part.rows * w.cols / 16; ++i) {
      largest = std::max(largest, 6.0 * double(part.global_scale) *
                                      std::fabs(double(e4m3_to_float(part.block_scales[i]))));
    }
  }
  return largest;
}

// Half an integer step of inputs up to `largest`, in as many products with values up to `weight`.
double integer_error(int64_t inputs, double largest, double weight) {
  return double(inputs) * weight * largest / 65278;
}

// Bound of one head's output. Scores move by at most d = scale * e * (magnitude of the score's
// products); probabilities then by a factor e^(2d); the output by (e^(2d) - 1 + errors of exp, of
// the sums and of rounded probabilities) times the magnitude of the value products. Expanded values
// are rounded once more.
std::vector<double> attention_bound(const AttentionCase& c, const Scene& scene, const Inputs& in,
                                    const std::vector<uint8_t>& cache, DType input_dtype,
                                    DType query_dtype) {
  const MlaShape s = mla_shape(c);
  std::vector<float> w(size_t(in.kv_b.total_rows() * in.kv_b.cols));
  for (int64_t r = 0; r < in.kv_b.total_rows(); ++r) decode_row(in.kv_b, r, w.data() + r * 512);
  std::vector<double> bound;
  const KvLayer layer = layer_at(c, cache);
  const bool integers = input_dtype == DType::kI16;
  const double largest_weight = integers ? largest_value(in.kv_b) : 0;
  if (integers) input_dtype = DType::kF32;
  const double e =
      2 * product_error(s.nope_dim, input_dtype) + 2 * product_error(s.record_dim(), query_dtype);
  for (const Segment& segment : scene.batch.segments) {
    const int length = segment.context + segment.num_rows;
    std::vector<double> top(size_t(s.record_dim()), 0.0);  // largest |value| of each column
    std::vector<float> record(size_t(s.record_dim()));
    for (int t = 0; t < length; ++t) {
      const int64_t page = scene.batch.pages[size_t(segment.first_page + t / c.page_size)];
      decode_record(layer, kv_record(layer, page, t % c.page_size), record.data());
      for (size_t k = 0; k < top.size(); ++k)
        top[k] = std::max(top[k], double(std::fabs(record[k])));
    }
    std::vector<double> expanded(size_t(in.kv_b.total_rows()), 0.0);  // |kv_b| top
    for (size_t r = 0; r < expanded.size(); ++r) {
      for (size_t k = 0; k < 512; ++k) expanded[r] += std::fabs(w[r * 512 + k]) * top[k];
    }
    for (int i = 0; i < segment.num_rows; ++i) {
      for (int h = 0; h < s.heads; ++h) {
        const float* q =
            in.q.data() + (int64_t(segment.first_row + i) * s.heads + h) * s.query_dim();
        const double* keys = expanded.data() + h * 448;
        double score = 0;
        for (int d = 0; d < s.nope_dim; ++d) score += std::fabs(q[d]) * keys[d];
        for (int d = 0; d < s.rope_dim; ++d) {
          score += std::fabs(q[s.nope_dim + d]) * std::sqrt(2.0) *
                   std::max(top[size_t(512 + d)], top[size_t(512 + (d ^ 1))]);
        }
        double largest_query = 0, column = 0;
        for (int d = 0; d < s.nope_dim; ++d) {
          largest_query = std::max(largest_query, double(std::fabs(q[d])));
        }
        for (int k = 0; k < 512; ++k) column = std::max(column, top[size_t(k)]);
        // Keys: inputs times block scales, whose products with the codes are largest_weight.
        const double rounding =
            512 * column * integer_error(s.nope_dim, largest_query, largest_weight);
        const double shift = 2 * (score * e + rounding) / std::sqrt(double(s.query_dim()));
        for (int d = 0; d < s.value_dim; ++d) {
          bound.push_back(keys[s.nope_dim + d] *
                              (std::expm1(shift) + double(length) * 0x1p-23 +
                               (c.expanded ? 2 : 1) * product_error(512, input_dtype) +
                               (query_dtype == DType::kBF16 ? (c.expanded ? 0x1p-7 : 0x1p-8) : 0) +
                               4 * kFunctionError) +
                          integer_error(512, column, largest_weight));
        }
      }
    }
  }
  return bound;
}

TEST_P(AttentionTest, Attention) {
  for (const AttentionCase& c : attention_cases()) {
    const Scene scene = scene_of(c, random_);
    const Inputs in = inputs_of(c, scene, backend_->activation_dtype(), random_);
    const Result got = run(*backend_, c, scene, in);
    const Result want = run(reference_, c, scene, in, {.records = &got.cache});
    const DType input = backend_->product_input_dtype(c.format);
    const DType query = backend_->product_input_dtype(Format::kBF16);
    const auto bound = attention_bound(c, scene, in, got.cache, input, query);
    double xx = 0, xy = 0, yy = 0;
    for (size_t i = 0; i < bound.size(); ++i) {
      const double stored = storage_error(backend_->activation_dtype()) * std::fabs(want.out[i]);
      ASSERT_NEAR(got.out[i], want.out[i], bound[i] + stored) << "element " << i;
      xx += double(got.out[i]) * got.out[i];
      xy += double(got.out[i]) * want.out[i];
      yy += double(want.out[i]) * want.out[i];
    }
    // The bound above is for the worst case; the vectors as wholes must be closer: two products'
    // relative error each way, squared.
    const double e = 4 * std::max(product_error(576, input), product_error(576, query));
    EXPECT_LE(xx + yy - 2 * xy, e * e * (xx + yy) + 1e-30);
  }
}

// The case, which is one segment, in chunks of 1, 14, 27, ... rows: the bits that `whole` has.
void expect_same_in_chunks(Backend& backend, const AttentionCase& c, const Scene& scene,
                           const Inputs& in, const std::vector<float>& whole) {
  const MlaShape s = mla_shape(c);
  const DType dtype = backend.activation_dtype();
  const auto [context, rows] = c.segments[0];
  KvLayer cache = layer_of(c);
  cache.data = backend.allocate(size_t(kv_page_bytes(cache) * scene.num_pages));
  const Weight gain = backend.upload(in.gain), kv_b = backend.upload(in.kv_b);
  DeviceMatrix fill_kv(backend, context, s.record_dim(), in.fill_kv, dtype);
  backend.begin_step(scene.fill);
  backend.mla_store(fill_kv.tensor(), gain, s, scene.fill, cache);
  const auto part_of = [&](const std::vector<float>& values, int first, int count, int width) {
    return std::vector<float>(values.begin() + first * width,
                              values.begin() + (first + count) * width);
  };
  const int q_dim = s.heads * s.query_dim(), out_dim = s.heads * s.value_dim;
  for (int first = 0, chunk = 1; first < rows; first += chunk, chunk = chunk % 40 + 13) {
    chunk = std::min(chunk, rows - first);
    const Batch batch{.tokens = std::vector<int32_t>(size_t(chunk)),
                      .segments = {{0, chunk, context + first, 0, c.expanded}},
                      .pages = scene.batch.pages};
    DeviceMatrix kv(backend, chunk, s.record_dim(), part_of(in.kv, first, chunk, s.record_dim()),
                    dtype);
    DeviceMatrix q(backend, chunk, q_dim, part_of(in.q, first, chunk, q_dim), dtype);
    DeviceMatrix out(backend, chunk, out_dim, dtype);
    backend.begin_step(batch);
    backend.mla_store(kv.tensor(), gain, s, batch, cache);
    backend.mla_attention(q.tensor(), kv_b, s, batch, cache, out.tensor());
    const auto part = out.floats();
    for (size_t i = 0; i < part.size(); ++i) {
      ASSERT_EQ(part[i], whole[size_t(first * out_dim) + i]) << "chunk at " << first;
    }
  }
  backend.free(cache.data);
}

TEST_P(AttentionTest, ARowIsTheSameAloneInAChunkAndInABatch) {
  const int rows = int(std::min<int64_t>(150, backend_->wide_rows() - 1));
  for (const AttentionCase& c :
       {AttentionCase{4, KvFormat::kBF16, 16, {{0, rows}}},
        AttentionCase{4, KvFormat::kInt8, 16, {{0, rows}}},
        AttentionCase{4, KvFormat::kBF16, 16, {{0, 150}}, Format::kBF16, false, true},
        AttentionCase{1, KvFormat::kInt8, 64, {{4040, 100}}, Format::kBF16, false, true}}) {
    const Scene scene = scene_of(c, random_);
    const Inputs in = inputs_of(c, scene, backend_->activation_dtype(), random_);
    expect_same_in_chunks(*backend_, c, scene, in, run(*backend_, c, scene, in).out);
  }
}

TEST_P(AttentionTest, LongContextsAreTheSameAloneAndInAChunk) {
  const AttentionCase c{2, KvFormat::kBF16, 16, {{0, 1100}}, Format::kBF16};
  const Scene scene = scene_of(c, random_);
  const Inputs in = inputs_of(c, scene, backend_->activation_dtype(), random_);
  const MlaShape s = mla_shape(c);
  const int q_dim = c.heads * s.query_dim(), out_dim = c.heads * s.value_dim;
  KvLayer cache = layer_of(c);
  cache.data = backend_->allocate(size_t(kv_page_bytes(cache) * scene.num_pages));
  const Weight gain = backend_->upload(in.gain), kv_b = backend_->upload(in.kv_b);
  const DType dtype = backend_->activation_dtype();
  DeviceMatrix kv(*backend_, 1100, s.record_dim(), in.kv, dtype);
  backend_->begin_step(scene.batch);
  backend_->mla_store(kv.tensor(), gain, s, scene.batch, cache);
  std::vector<float> want;
  const int most = int(std::min<int64_t>(1100, backend_->wide_rows() - 1));
  for (int first = 0; first < 1100; first += most) {
    const int rows = std::min(most, 1100 - first);
    const Batch batch{.tokens = std::vector<int32_t>(size_t(rows)),
                      .segments = {{0, rows, first, 0}},
                      .pages = scene.batch.pages};
    const std::vector<float> part(in.q.begin() + first * q_dim,
                                  in.q.begin() + (first + rows) * q_dim);
    DeviceMatrix q(*backend_, rows, q_dim, part, dtype), out(*backend_, rows, out_dim, dtype);
    backend_->begin_step(batch);
    backend_->mla_attention(q.tensor(), kv_b, s, batch, cache, out.tensor());
    const auto values = out.floats();
    want.insert(want.end(), values.begin(), values.end());
  }
  for (const std::vector<int>& positions :
       {std::vector<int>{1099}, {700}, {511}, {512, 40, 1023, 1098}}) {
    Batch batch{.tokens = std::vector<int32_t>(positions.size()), .pages = scene.batch.pages};
    std::vector<float> rows;
    for (const int p : positions) {
      batch.segments.push_back({int(batch.segments.size()), 1, p, 0});
      rows.insert(rows.end(), in.q.begin() + p * q_dim, in.q.begin() + (p + 1) * q_dim);
    }
    DeviceMatrix few(*backend_, batch.rows(), q_dim, rows, dtype);
    DeviceMatrix out(*backend_, batch.rows(), out_dim, dtype);
    backend_->begin_step(batch);
    backend_->mla_attention(few.tensor(), kv_b, s, batch, cache, out.tensor());
    const auto got = out.floats();
    for (size_t i = 0; i < got.size(); ++i) {
      const size_t p = size_t(positions[i / size_t(out_dim)]);
      ASSERT_EQ(got[i], want[p * size_t(out_dim) + i % size_t(out_dim)]) << "position " << p;
    }
  }
  backend_->free(cache.data);
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionTest,
                         testing::Values("reference", "cpu", "cpu_exact", "cuda"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace nibble
