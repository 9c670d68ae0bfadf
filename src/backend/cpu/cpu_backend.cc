#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/machine_limits.h"
#include "backend/cpu/rows.h"

namespace nibble {
namespace {

constexpr int64_t kElementCost = 4;  // of a row kernel, in multiply-adds

}  // namespace

CpuBackend::CpuBackend(int threads, bool exact)
    : exact_(exact),
      workers_(threads, exact),
      linear_(workers_),
      mla_store_(workers_),
      mla_attention_(workers_),
      router_(workers_),
      experts_(workers_),
      sampler_(workers_) {}

std::string CpuBackend::description() const {
  return "cpu: " + workers_.instruction_set() + ", " + std::to_string(workers_.size()) +
         (workers_.size() == 1 ? " thread" : " threads");
}

MachineLimits CpuBackend::measure_limits() {
  return {.read_bytes_per_second = measure_read_bandwidth(workers_.pool()),
          .flops_per_second = measure_gemm_peak(workers_.pool())};
}

DType CpuBackend::product_input_dtype(Format format) const {
  const PanelFormat panels =
      format == Format::kNvfp4 && !exact_ ? PanelFormat::kNvfp4 : PanelFormat::kBF16;
  switch (workers_.kernel(panels, kWideRows).input) {
    case InputFormat::kF32:
      return DType::kF32;
    case InputFormat::kBF16:
      return DType::kBF16;
    case InputFormat::kInt16:
    case InputFormat::kSplit16:
      return DType::kI16;
  }
  return DType::kF32;
}

void* CpuBackend::allocate(size_t bytes) {
  auto pages = std::make_unique<PageMemory>(bytes);
  void* memory = pages->data();
  allocations_[memory] = std::move(pages);
  return memory;
}

void CpuBackend::free(void* memory) {
  CHECK(memory == nullptr || allocations_.erase(memory) == 1, "not this backend's memory");
}

void CpuBackend::write(void* memory, const void* host, size_t bytes) {
  if (bytes > 0) std::memcpy(memory, host, bytes);
}

void CpuBackend::read(const void* memory, void* host, size_t bytes) {
  if (bytes > 0) std::memcpy(host, memory, bytes);
}

Weight CpuBackend::upload(const Weight& host) {
  Weight uploaded = host;
  uploaded.resident = pack(host, weights_, workers_.pool(), exact_);
  return uploaded;
}

void CpuBackend::begin_step(const Batch& batch) {
  positions_ = 0;
  for (const Segment& s : batch.segments) {
    positions_ = std::max<int64_t>(positions_, s.context + s.num_rows);
  }
}

void CpuBackend::embed(const Weight& table, const Batch& batch, Tensor out) {
  workers_.run(out.rows > 1 ? out.rows * out.cols * kElementCost : 0, [&](int thread) {
    const Share share = workers_.share(thread, out.rows);
    for (int64_t t = share.first; t < share.last; ++t) {
      const int32_t token = batch.tokens[size_t(t)];
      look_up_row(table, token >= 0 ? token : batch.chosen[-1 - token], out.row<float>(t));
    }
  });
}

void CpuBackend::add_rms_norm(Tensor x, Tensor delta, const Weight& gain, float eps, Tensor out) {
  CHECK(gain.cols == x.cols && out.cols == x.cols && out.rows == x.rows, "%s", gain.name.c_str());
  workers_.run(x.rows > 1 ? x.rows * x.cols * kElementCost : 0, [&](int thread) {
    const Share share = workers_.share(thread, x.rows);
    for (int64_t t = share.first; t < share.last; ++t) {
      add_rms_norm_row(x.row<float>(t), delta.data == nullptr ? nullptr : delta.row<float>(t),
                       packed(gain).values.data(), x.cols, eps, out.row<float>(t));
    }
  });
}

void CpuBackend::gather_rows(Tensor x, const Batch& batch, Tensor out) {
  for (int64_t i = 0; i < out.rows; ++i) {
    std::memcpy(out.row<float>(i), x.row<float>(batch.logit_rows[size_t(i)]),
                size_t(x.cols) * sizeof(float));
  }
}

void CpuBackend::linear(Tensor x, const Weight& w, Tensor out, bool accumulate) {
  linear_.run(x, w, out, accumulate);
}

void CpuBackend::silu_mul(Tensor gate_up, Tensor out) {
  CHECK(gate_up.cols == 2 * out.cols && gate_up.rows == out.rows, "%ld columns", long(out.cols));
  workers_.run(out.rows > 1 ? out.rows * out.cols * 2 * kElementCost : 0, [&](int thread) {
    const Share share = workers_.share(thread, out.rows);
    for (int64_t t = share.first; t < share.last; ++t) {
      const float* gate = gate_up.row<float>(t);
      silu_mul_row(gate, gate + out.cols, out.cols, out.row<float>(t));
    }
  });
}

void CpuBackend::mla_store(Tensor kv, const Weight& gain, const MlaShape& shape, const Batch& batch,
                           const KvLayer& cache) {
  rope_.cover(shape.rope_dim, shape.rope_theta, positions_);
  mla_store_.run(kv, gain, shape, batch, cache, rope_);
}

void CpuBackend::mla_attention(Tensor q, const Weight& kv_b, const MlaShape& shape,
                               const Batch& batch, const KvLayer& cache, Tensor out) {
  rope_.cover(shape.rope_dim, shape.rope_theta, positions_);
  mla_attention_.run(q, kv_b, shape, batch, cache, rope_, out);
}

void CpuBackend::route(Tensor x, const Weight& router, const Weight& bias, const RouterShape& shape,
                       Routing out) {
  router_.run(x, router, bias, shape, out);
}

void CpuBackend::experts(Tensor x, const Routing& routing, const Weight& gate_up,
                         const Weight& down, Tensor out) {
  experts_.run(x, routing, gate_up, down, out);
}

void CpuBackend::sample(Tensor logits, const SampleBatch& rows, SampleResult out) {
  sampler_.run(logits, rows, out);
}

}  // namespace nibble
