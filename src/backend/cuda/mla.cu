// Attention as backend.h spells it, absorbed: a block a row and head, queries brought into the
// latent space, a running softmax over the cached records.
#include <cuda_fp8.h>

#include "backend/cuda/dtypes.h"
#include "backend/cuda/mla.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/rope.cuh"
#include "backend/cuda/tile.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 64;  // records whose scores are taken at once

struct Records {
  char* data;
  KvFormat format;
  int page_size, width;
  int64_t record_bytes, page_bytes;

  explicit Records(const KvLayer& cache)
      : data(static_cast<char*>(cache.data)),
        format(cache.format),
        page_size(cache.page_size),
        width(cache.width),
        record_bytes(kv_value_bytes(cache)),
        page_bytes(kv_page_bytes(cache)) {
    CHECK(kv_scale_bytes(cache) == 0, "a cache with scales");
  }

  __device__ char* at(const int32_t* pages, int position) const {
    return data + pages[position / page_size] * page_bytes + position % page_size * record_bytes;
  }
  __device__ float load(const char* record, int i) const {
    if (format == KvFormat::kF32) return reinterpret_cast<const float*>(record)[i];
    if (format == KvFormat::kBF16) return to_float(reinterpret_cast<const bf16*>(record)[i]);
    return float(reinterpret_cast<const __nv_fp8_e4m3*>(record)[i]);
  }
  __device__ void store(char* record, int i, float value) const {
    if (format == KvFormat::kF32) {
      reinterpret_cast<float*>(record)[i] = value;
    } else if (format == KvFormat::kBF16) {
      reinterpret_cast<bf16*>(record)[i] = from_float<bf16>(value);
    } else {
      reinterpret_cast<__nv_fp8_e4m3*>(record)[i] = __nv_fp8_e4m3(value);
    }
  }
};

template <typename In>
__global__ void store_kernel(Matrix<In> kv, const float* gain, int latent, float eps, Rope rope,
                             StepView step, Records records) {
  __shared__ float shared[kWarp];
  wait_for_predecessor();
  let_successor_begin();
  const int t = blockIdx.x;
  const int position = step.positions[t];
  const In* row = kv.row(t);
  float square = 0;
  for (int i = threadIdx.x; i < latent; i += kThreads)
    square += to_float(row[i]) * to_float(row[i]);
  const float scale = 1.0f / sqrtf(block_sum(square, shared) / float(latent) + eps);
  const Segment segment = step.segments[step.row_segment[t]];
  char* record = records.at(step.pages + segment.first_page, position);
  for (int i = threadIdx.x; i < latent; i += kThreads) {
    records.store(record, i, to_float(row[i]) * scale * gain[i]);
  }
  for (int i = threadIdx.x; i < rope.dim / 2; i += kThreads) {
    const float2 pair =
        rotate(rope, position, i, to_float(row[latent + 2 * i]), to_float(row[latent + 2 * i + 1]));
    records.store(record, latent + 2 * i, pair.x);
    records.store(record, latent + 2 * i + 1, pair.y);
  }
}

struct Head {
  int nope, rope, value, latent, rows;  // rows of kv_b a head
};

// Shared: query [latent + rope], scores [kTile], sums.
template <typename T>
__global__ void attention_kernel(Matrix<T> q, const float* kv_b, Head s, Rope rope, float scale,
                                 StepView step, Records records, Matrix<T> out) {
  extern __shared__ float shared[];
  float* query = shared;
  float* scores = query + s.latent + s.rope;
  float* latent = scores + kTile;
  wait_for_predecessor();
  let_successor_begin();
  const int t = blockIdx.x, head = blockIdx.y, position = step.positions[t];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const T* q_row = q.row(t) + head * (s.nope + s.rope);
  const float* w_uk = kv_b + int64_t(head) * s.rows * s.latent;
  const float* w_uv = w_uk + int64_t(s.nope) * s.latent;
  for (int c = threadIdx.x; c < s.latent; c += kThreads) {
    float sum = 0;
    for (int d = 0; d < s.nope; ++d) sum += to_float(q_row[d]) * w_uk[int64_t(d) * s.latent + c];
    query[c] = sum;
  }
  for (int i = threadIdx.x; i < s.rope / 2; i += kThreads) {
    const float2 pair = rotate(rope, position, i, to_float(q_row[s.nope + 2 * i]),
                               to_float(q_row[s.nope + 2 * i + 1]));
    query[s.latent + 2 * i] = pair.x;
    query[s.latent + 2 * i + 1] = pair.y;
  }
  for (int c = threadIdx.x; c < s.latent; c += kThreads) latent[c] = 0;
  const int32_t* pages = step.pages + step.segments[step.row_segment[t]].first_page;
  float best = -INFINITY, total = 0;
  for (int first = 0; first <= position; first += kTile) {
    const int count = min(kTile, position + 1 - first);
    __syncthreads();
    for (int j = warp; j < count; j += kThreads / kWarp) {
      const char* record = records.at(pages, first + j);
      float sum = 0;
      for (int c = lane; c < s.latent + s.rope; c += kWarp)
        sum += query[c] * records.load(record, c);
      sum = warp_sum(sum);
      if (lane == 0) scores[j] = sum * scale;
    }
    __syncthreads();
    float top = best;
    for (int j = 0; j < count; ++j) top = fmaxf(top, scores[j]);
    const float shrink = expf(best - top);
    best = top;
    total *= shrink;
    for (int j = 0; j < count; ++j) total += expf(scores[j] - best);
    for (int c = threadIdx.x; c < s.latent; c += kThreads) {
      float sum = latent[c] * shrink;
      for (int j = 0; j < count; ++j) {
        sum += expf(scores[j] - best) * records.load(records.at(pages, first + j), c);
      }
      latent[c] = sum;
    }
  }
  __syncthreads();
  for (int d = warp; d < s.value; d += kThreads / kWarp) {
    float sum = 0;
    for (int c = lane; c < s.latent; c += kWarp) sum += latent[c] * w_uv[int64_t(d) * s.latent + c];
    sum = warp_sum(sum);
    if (lane == 0) out.row(t)[head * s.value + d] = from_float<T>(sum / total);
  }
}

}  // namespace

std::shared_ptr<const void> upload_latent_up(const Uploads& to, const Weight& host) {
  return upload_rows(to, host);
}

void mla_store(const Context& context, Tensor kv, const Weight& gain, const MlaShape& shape,
               const KvLayer& cache) {
  const Rope rope = rope_of(shape.rope_dim, shape.rope_theta);
  with_activation(kv.dtype, [&]<typename In>(In) {
    launch(context, {.blocks = {unsigned(kv.rows)}, .threads = kThreads}, store_kernel<In>,
           Matrix<In>(kv), resident_as<DeviceRows>(gain).data, shape.latent_dim, shape.norm_eps,
           rope, context.step, Records(cache));
  });
}

void mla_attention(const Context& context, Tensor q, const Weight& kv_b, const MlaShape& shape,
                   const KvLayer& cache, Tensor out) {
  CHECK(q.dtype == out.dtype);
  const Rope rope = rope_of(shape.rope_dim, shape.rope_theta);
  const Head head{shape.nope_dim, shape.rope_dim, shape.value_dim, shape.latent_dim,
                  int(kv_b.rows)};
  const Grid grid{
      .blocks = {unsigned(q.rows), unsigned(shape.heads)},
      .threads = kThreads,
      .shared_bytes = size_t(2 * shape.latent_dim + shape.rope_dim + kTile) * sizeof(float)};
  with_activation(q.dtype, [&]<typename T>(T) {
    launch(context, grid, attention_kernel<T>, Matrix<T>(q), resident_as<DeviceRows>(kv_b).data,
           head, rope, 1.0f / std::sqrt(float(shape.query_dim())), context.step, Records(cache),
           Matrix<T>(out));
  });
}

}  // namespace nibble::cuda
