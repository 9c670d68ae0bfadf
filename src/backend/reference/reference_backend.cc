#include "backend/reference/reference_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "base/error.h"

namespace nibble {
namespace {

// The decoded matrix of an uploaded weight: [total_rows, cols].
const float* decoded(const Weight& w) {
  CHECK(w.resident != nullptr, "%s is not uploaded", w.name.c_str());
  return static_cast<const std::vector<float>*>(w.resident.get())->data();
}

double dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double(a[i]) * b[i];
  return sum;
}

float silu(float x) {
  return float(x / (1 + std::exp(-double(x))));
}

// Rotates interleaved pairs (x0, x1) by position * theta^(-2i/n).
void rotate(float* x, int n, int position, float theta) {
  for (int i = 0; i < n; i += 2) {
    const double angle = position * std::pow(double(theta), -double(i) / n);
    const double x0 = x[i], x1 = x[i + 1];
    x[i] = float(x0 * std::cos(angle) - x1 * std::sin(angle));
    x[i + 1] = float(x0 * std::sin(angle) + x1 * std::cos(angle));
  }
}

KvRecord cache_record(const KvLayer& cache, const Batch& batch, const Segment& s, int position) {
  const int64_t page = batch.pages[size_t(s.first_page + position / cache.page_size)];
  return kv_record(cache, page, position % cache.page_size);
}

void rms_norm_row(const float* x, const float* gain, int64_t n, float eps, float* out) {
  const double scale = 1 / std::sqrt(dot(x, x, n) / double(n) + eps);
  for (int64_t i = 0; i < n; ++i) out[i] = float(x[i] * scale * gain[i]);
}

void matrix_row(const float* x, const float* w, int64_t rows, int64_t cols, float* out) {
  for (int64_t n = 0; n < rows; ++n) out[n] = float(dot(x, w + n * cols, cols));
}

}  // namespace

void* ReferenceBackend::allocate(size_t bytes) {
  const size_t size = (std::max<size_t>(bytes, 1) + 255) / 256 * 256;
  void* memory = std::aligned_alloc(256, size);
  if (memory == nullptr) throw Error("out of memory: " + std::to_string(size) + " bytes");
  std::memset(memory, 0, size);
  return memory;
}

void ReferenceBackend::free(void* memory) {
  std::free(memory);
}

void ReferenceBackend::write(void* memory, const void* host, size_t bytes) {
  if (bytes > 0) std::memcpy(memory, host, bytes);
}

void ReferenceBackend::read(const void* memory, void* host, size_t bytes) {
  if (bytes > 0) std::memcpy(host, memory, bytes);
}

Weight ReferenceBackend::upload(const Weight& host) {
  auto values = std::make_shared<std::vector<float>>(size_t(host.total_rows() * host.cols));
  for (int64_t r = 0; r < host.total_rows(); ++r) {
    decode_row(host, r, values->data() + r * host.cols);
  }
  Weight uploaded = host;
  uploaded.resident = values;
  return uploaded;
}

void ReferenceBackend::embed(const Weight& table, const Batch& batch, Tensor out) {
  for (int64_t t = 0; t < out.rows; ++t) {
    int32_t token = batch.tokens[size_t(t)];
    if (token < 0) token = batch.chosen[-1 - token];
    std::memcpy(out.row<float>(t), decoded(table) + token * table.cols,
                size_t(table.cols) * sizeof(float));
  }
}

void ReferenceBackend::add_rms_norm(Tensor x, Tensor delta, const Weight& gain, float eps,
                                    Tensor out) {
  for (int64_t t = 0; t < x.rows; ++t) {
    float* row = x.row<float>(t);
    if (delta.data != nullptr) {
      for (int64_t i = 0; i < x.cols; ++i) row[i] += delta.row<float>(t)[i];
    }
    rms_norm_row(row, decoded(gain), x.cols, eps, out.row<float>(t));
  }
}

void ReferenceBackend::gather_rows(Tensor x, const Batch& batch, Tensor out) {
  for (int64_t i = 0; i < out.rows; ++i) {
    std::memcpy(out.row<float>(i), x.row<float>(batch.logit_rows[size_t(i)]),
                size_t(x.cols) * sizeof(float));
  }
}

void ReferenceBackend::linear(Tensor x, const Weight& w, Tensor out, bool accumulate) {
  CHECK(x.cols == w.cols && out.cols == w.rows && x.rows == out.rows, "%s", w.name.c_str());
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t n = 0; n < w.rows; ++n) {
      const double y = dot(x.row<float>(t), decoded(w) + n * w.cols, w.cols);
      float& cell = out.row<float>(t)[n];
      cell = float(accumulate ? cell + y : y);
    }
  }
}

void ReferenceBackend::silu_mul(Tensor gate_up, Tensor out) {
  for (int64_t t = 0; t < out.rows; ++t) {
    const float* gate = gate_up.row<float>(t);
    for (int64_t i = 0; i < out.cols; ++i) {
      out.row<float>(t)[i] = silu(gate[i]) * gate[i + out.cols];
    }
  }
}

void ReferenceBackend::mla_store(Tensor kv, const Weight& gain, const MlaShape& shape,
                                 const Batch& batch, const KvLayer& cache) {
  std::vector<float> record(size_t(shape.record_dim()));
  for (const Segment& segment : batch.segments) {
    for (int i = 0; i < segment.num_rows; ++i) {
      const float* row = kv.row<float>(segment.first_row + i);
      const int position = segment.context + i;
      rms_norm_row(row, decoded(gain), shape.latent_dim, shape.norm_eps, record.data());
      float* rope_key = record.data() + shape.latent_dim;
      std::memcpy(rope_key, row + shape.latent_dim, size_t(shape.rope_dim) * sizeof(float));
      rotate(rope_key, shape.rope_dim, position, shape.rope_theta);
      encode_record(cache, record.data(), cache_record(cache, batch, segment, position));
    }
  }
}

namespace {

// One head of one row over the records [position + 1, record_dim]: absorbed, which is the same
// function as expanding keys and values: q_nope . (W_uk c) = (W_uk^T q_nope) . c.
void attend(const float* q, const float* w_uk, const MlaShape& s, int position,
            const std::vector<float>& records, float* out) {
  const float* w_uv = w_uk + int64_t(s.nope_dim) * s.latent_dim;
  std::vector<double> q_latent(size_t(s.latent_dim), 0.0);
  for (int d = 0; d < s.nope_dim; ++d) {
    for (int c = 0; c < s.latent_dim; ++c) {
      q_latent[size_t(c)] += double(q[d]) * w_uk[int64_t(d) * s.latent_dim + c];
    }
  }
  std::vector<float> q_rope(q + s.nope_dim, q + s.query_dim());
  rotate(q_rope.data(), s.rope_dim, position, s.rope_theta);

  std::vector<double> p(size_t(position) + 1);
  for (int t = 0; t <= position; ++t) {
    const float* record = records.data() + int64_t(t) * s.record_dim();
    double score = dot(q_rope.data(), record + s.latent_dim, s.rope_dim);
    for (int c = 0; c < s.latent_dim; ++c) score += q_latent[size_t(c)] * record[c];
    p[size_t(t)] = score / std::sqrt(double(s.query_dim()));
  }
  const double top = *std::max_element(p.begin(), p.end());
  for (double& v : p) v = std::exp(v - top);
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);

  std::vector<double> latent(size_t(s.latent_dim), 0.0);
  for (int t = 0; t <= position; ++t) {
    const float* record = records.data() + int64_t(t) * s.record_dim();
    for (int c = 0; c < s.latent_dim; ++c) latent[size_t(c)] += p[size_t(t)] / sum * record[c];
  }
  for (int d = 0; d < s.value_dim; ++d) {
    double value = 0;
    for (int c = 0; c < s.latent_dim; ++c) {
      value += latent[size_t(c)] * w_uv[int64_t(d) * s.latent_dim + c];
    }
    out[d] = float(value);
  }
}

}  // namespace

void ReferenceBackend::mla_attention(Tensor q, const Weight& kv_b, const MlaShape& shape,
                                     const Batch& batch, const KvLayer& cache, Tensor out) {
  for (const Segment& segment : batch.segments) {
    const int length = segment.context + segment.num_rows;
    std::vector<float> records(size_t(length) * size_t(shape.record_dim()));
    for (int t = 0; t < length; ++t) {
      decode_record(cache, cache_record(cache, batch, segment, t),
                    records.data() + int64_t(t) * shape.record_dim());
    }
    for (int i = 0; i < segment.num_rows; ++i) {
      for (int h = 0; h < shape.heads; ++h) {
        attend(q.row<float>(segment.first_row + i) + h * shape.query_dim(),
               decoded(kv_b) + h * kv_b.rows * kv_b.cols, shape, segment.context + i, records,
               out.row<float>(segment.first_row + i) + h * shape.value_dim);
      }
    }
  }
}

void ReferenceBackend::route(Tensor x, const Weight& router, const Weight& bias,
                             const RouterShape& shape, Routing out) {
  std::vector<float> score(size_t(shape.num_experts));
  std::vector<int32_t> order(score.size());
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int e = 0; e < shape.num_experts; ++e) {
      const double logit = dot(x.row<float>(t), decoded(router) + e * router.cols, router.cols);
      score[size_t(e)] = float(1 / (1 + std::exp(-logit)));
    }
    std::iota(order.begin(), order.end(), 0);
    const auto choice = [&](int32_t e) { return score[size_t(e)] + decoded(bias)[e]; };
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return choice(a) > choice(b); });
    float sum = 0;
    for (int k = 0; k < shape.top_k; ++k) sum += score[size_t(order[size_t(k)])];
    const float scale = shape.scaling / (shape.normalize ? sum + 1e-20f : 1.0f);
    for (int k = 0; k < shape.top_k; ++k) {
      out.experts.row<int32_t>(t)[k] = order[size_t(k)];
      out.weights.row<float>(t)[k] = score[size_t(order[size_t(k)])] * scale;
    }
    for (int s = 0; s < shape.num_shared; ++s) {
      out.experts.row<int32_t>(t)[shape.top_k + s] = shape.num_experts + s;
      out.weights.row<float>(t)[shape.top_k + s] = 1;
    }
  }
}

void ReferenceBackend::experts(Tensor x, const Routing& routing, const Weight& gate_up,
                               const Weight& down, Tensor out) {
  const int64_t width = down.cols;
  std::vector<float> wide(size_t(2 * width)), inner(size_t(width), 0.0f), y(size_t(out.cols));
  for (int64_t t = 0; t < x.rows; ++t) {
    std::fill_n(out.row<float>(t), out.cols, 0.0f);
    for (int64_t k = 0; k < routing.experts.cols; ++k) {
      const int32_t e = routing.experts.row<int32_t>(t)[k];
      matrix_row(x.row<float>(t), decoded(gate_up) + e * gate_up.rows * gate_up.cols, gate_up.rows,
                 gate_up.cols, wide.data());
      for (int64_t i = 0; i < width; ++i) {
        inner[size_t(i)] = silu(wide[size_t(i)]) * wide[size_t(i + width)];
      }
      matrix_row(inner.data(), decoded(down) + e * down.rows * down.cols, down.rows, down.cols,
                 y.data());
      for (int64_t i = 0; i < out.cols; ++i) {
        out.row<float>(t)[i] += routing.weights.row<float>(t)[k] * y[size_t(i)];
      }
    }
  }
}

}  // namespace nibble
