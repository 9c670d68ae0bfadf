#include "backend/cuda/cuda_backend.h"

#include <cstring>
#include <utility>

#include "backend/cuda/experts.h"
#include "backend/cuda/head.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/machine_limits.h"
#include "backend/cuda/mla.h"
#include "backend/cuda/route.h"

namespace nibble {
namespace {

constexpr int64_t kPlentyBytes = int64_t(24) << 30;
constexpr size_t kReadBufferBytes = 256 << 10;
constexpr int kMostRecordedRows = 64;  // the kernels of more take longer than launching them

}  // namespace

CudaBackend::CudaBackend(const Options& options)
    : options_(options), device_(cuda::open_device(options.device)) {
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  read_buffer_ = cuda::PinnedMemory(kReadBufferBytes);
  arrived_ = cuda::DeviceMemory(sizeof(unsigned));
  CUDA_CHECK(cudaMemset(arrived_.data(), 0, arrived_.size()));
  counters_ = cuda::DeviceMemory(cuda::kNumCounters * sizeof(int));
  CUDA_CHECK(cudaMemset(counters_.data(), 0, counters_.size()));
}

CudaBackend::~CudaBackend() {
  cudaStreamSynchronize(stream_);
  replay_.clear();
  cudaStreamDestroy(stream_);
}

cuda::Context CudaBackend::context() {
  const cuda::Context context = context_as_is();
  if (sums_) cuda::combine_slots(context, *sums_);
  sums_.reset();
  if (norm_) cuda::add_rms_norm(context, *norm_);
  norm_.reset();
  if (linear_) cuda::norm_and_linear(context, *linear_);
  linear_.reset();
  if (route_) cuda::norm_and_route(context, *route_);
  route_.reset();
  if (store_) cuda::mla_store(context, *store_);
  store_.reset();
  return context;
}

cuda::Context CudaBackend::context_as_is() {
  device_.make_current();
  return {.device = device_,
          .stream = stream_,
          .workspace = workspace_,
          .step = step_.view(),
          .counters = counters_.as<int>(),
          .serializes = serializes_};
}

std::string CudaBackend::description() const {
  return "cuda:" + std::to_string(device_.index) + ": " + device_.name + ", " +
         std::to_string(device_.memory_bytes >> 20) + " MiB, compute capability " +
         std::to_string(device_.arch / 10) + "." + std::to_string(device_.arch % 10);
}

MemoryState CudaBackend::memory() const {
  device_.make_current();
  size_t free = 0, total = 0;
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return {.total_bytes = int64_t(total), .free_bytes = int64_t(free)};
}

bool CudaBackend::is_short_of_memory() const {
  const int64_t bytes =
      options_.memory_bytes > 0 ? options_.memory_bytes : int64_t(device_.memory_bytes);
  return bytes < kPlentyBytes;
}

MachineLimits CudaBackend::measure_limits() {
  return cuda::measure_limits(context());
}

void* CudaBackend::allocate(size_t bytes) {
  device_.make_current();
  cuda::DeviceMemory memory(bytes);
  CUDA_CHECK(cudaMemsetAsync(memory.data(), 0, memory.size(), stream_));
  void* data = memory.data();
  allocations_[data] = std::move(memory);
  return data;
}

void CudaBackend::free(void* memory) {
  if (memory == nullptr) return;
  if (cudaStreamSynchronize(stream_) != cudaSuccess) {
    norm_.reset(), linear_.reset(), route_.reset(), store_.reset(), sums_.reset();
  }
  context();
  cudaStreamSynchronize(stream_);  // on a lost card, too, memory is given back
  replay_.clear();                 // a record may hold its address
  CHECK(allocations_.erase(memory) == 1, "not this backend's memory");
}

void CudaBackend::write(void* memory, const void* host, size_t bytes) {
  if (bytes == 0) return;
  CUDA_CHECK(cudaMemcpyAsync(memory, host, bytes, cudaMemcpyHostToDevice, context().stream));
  CUDA_CHECK(cudaStreamSynchronize(stream_));
}

void CudaBackend::read(const void* memory, void* host, size_t bytes) {
  if (bytes == 0) return;
  const bool buffered = bytes <= kReadBufferBytes;
  void* to = buffered ? read_buffer_.data() : host;
  CUDA_CHECK(cudaMemcpyAsync(to, memory, bytes, cudaMemcpyDeviceToHost, context().stream));
  CUDA_CHECK(cudaStreamSynchronize(stream_));
  if (buffered) std::memcpy(host, to, bytes);
}

void CudaBackend::start_read(const void* memory, void* host, size_t bytes) {
  readback_.start(context(), memory, host, bytes);
}

void CudaBackend::finish_read(void* host) {
  device_.make_current();
  readback_.finish(host);
}

Weight CudaBackend::upload(const Weight& host) {
  device_.make_current();
  if (!feed_) feed_.emplace();
  const cuda::Uploads to{.device = device_, .stream = stream_, .arena = weights_, .feed = *feed_};
  Weight uploaded = host;
  switch (host.use) {
    case Use::kLinear:
      uploaded.resident = cuda::upload_linear(to, host);
      break;
    case Use::kHead:
      uploaded.resident = cuda::has_codes(host) ? cuda::upload_head(to, host, is_short_of_memory())
                                                : cuda::upload_linear(to, host);
      break;
    case Use::kExperts:
    case Use::kGatedExperts:
      uploaded.resident = cuda::upload_experts(to, host);
      break;
    case Use::kLatentUp:
      uploaded.resident = cuda::upload_latent_up(to, host);
      break;
    case Use::kTable:
      uploaded.resident = cuda::upload_table(to, host, is_short_of_memory());
      break;
    case Use::kRouter:
      uploaded.resident = cuda::upload_router(to, host);
      break;
    case Use::kVector:
      uploaded.resident = cuda::upload_rows(to, host);
      break;
  }
  return uploaded;
}

void CudaBackend::begin_step(const Batch& batch) {
  if (feed_) {
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    feed_.reset();
  }
  step_.fill(batch, context());
}

void CudaBackend::replay(uint64_t key, const std::function<void()>& step) {
  const auto whole_step = [&] {
    step();
    context();
  };
  context();
  if (key == 0 || step_.view().rows > kMostRecordedRows) return whole_step();
  const int generation = step_.generation() + workspace_.generation();
  if (generation != recorded_generation_) replay_.clear();
  recorded_generation_ = generation;
  const uint64_t bound = uint64_t(step_.view().length_bound);
  replay_.run(key * 0x9e3779b97f4a7c15u ^ bound, context().stream, whole_step);
}

void CudaBackend::embed(const Weight& table, const Batch&, Tensor out) {
  cuda::embed(context(), table, out);
}

void CudaBackend::add_rms_norm(Tensor x, Tensor delta, const Weight& gain, float eps, Tensor out) {
  cuda::Norm norm = cuda::norm_of(x, delta, gain, eps, out);
  norm.arrived = arrived_.as<unsigned>();
  if (sums_ && cuda::can_add_sums(norm, *sums_)) {
    norm.delta_sums = *sums_;
    sums_.reset();
  }
  context();
  norm_ = norm;
}

void CudaBackend::gather_rows(Tensor x, const Batch&, Tensor out) {
  cuda::gather_rows(context(), x, out);
}

void CudaBackend::linear(Tensor x, const Weight& w, Tensor out, bool accumulate) {
  if (cuda::has_codes(w)) {
    CHECK(!accumulate, "%s", w.name.c_str());
    return cuda::head(context(), x, w, out);
  }
  if (norm_ && norm_->out.data == x.data && norm_->out.rows == x.rows &&
      cuda::can_multiply_norm(*norm_, w)) {
    linear_ = {.norm = *norm_, .w = &w, .out = out, .accumulate = accumulate};
    norm_.reset();
    if (!cuda::may_be_queries(*linear_)) context();
    return;
  }
  cuda::linear(context(), x, w, out, accumulate);
}

void CudaBackend::silu_mul(Tensor gate_up, Tensor out) {
  cuda::silu_mul(context(), gate_up, out);
}

void CudaBackend::mla_store(Tensor kv, const Weight& gain, const MlaShape& shape, const Batch&,
                            const KvLayer& cache) {
  const auto queries = std::exchange(linear_, std::nullopt);  // not read or written here
  context();
  linear_ = queries;
  store_ = cuda::store_of(kv, gain, shape, cache);
}

void CudaBackend::mla_attention(Tensor q, const Weight& kv_b, const MlaShape& shape,
                                const Batch& batch, const KvLayer& cache, Tensor out) {
  if (store_ && !norm_ && !route_ && cuda::can_store_and_attend(*store_, batch)) {
    const bool makes_queries = linear_ && linear_->out.data == q.data;
    const auto queries = makes_queries ? std::exchange(linear_, std::nullopt) : std::nullopt;
    const auto store = std::exchange(store_, std::nullopt);
    return cuda::mla_attention(context(), q, kv_b, shape, batch, cache, out, &*store,
                               queries ? &*queries : nullptr);
  }
  cuda::mla_attention(context(), q, kv_b, shape, batch, cache, out);
}

void CudaBackend::route(Tensor x, const Weight& router, const Weight& bias,
                        const RouterShape& shape, Routing out) {
  if (norm_ && norm_->out.data == x.data && norm_->out.rows == x.rows &&
      cuda::can_route_with(*norm_)) {
    route_ = cuda::route_of(*norm_, router, bias, shape, out);
    return norm_.reset();
  }
  cuda::route(context(), x, router, bias, shape, out);
}

void CudaBackend::experts(Tensor x, const Routing& routing, const Weight& gate_up,
                          const Weight& down, Tensor out) {
  if (route_ && cuda::can_route_in_experts(context_as_is(), *route_, x, routing, gate_up)) {
    sums_ = cuda::route_and_experts(context_as_is(), *route_, gate_up, down, out);
    return route_.reset();
  }
  sums_ = cuda::experts(context(), x, routing, gate_up, down, out);
}

void CudaBackend::sample(Tensor logits, const SampleBatch& rows, SampleResult out) {
  sampler_.run(context(), logits, rows, out);
}

}  // namespace nibble
