// A block a row. Bound by the launch at the sizes of one token, by memory at those of a prefill.
#include <algorithm>
#include <cstring>

#include "backend/cuda/dtypes.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/rows.h"
#include "backend/cuda/tile.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

struct Table {
  const void* rows = nullptr;
  DType dtype = DType::kF32;
  PinnedMemory pinned{};
};

template <typename In>
__global__ void embed_kernel(const In* table, StepView step, Matrix<float> out) {
  wait_for_predecessor();
  let_successor_begin();
  const int64_t t = blockIdx.x;
  const In* row = table + int64_t(step.tokens[t]) * out.cols;
  for (int64_t i = threadIdx.x; i < out.cols; i += kThreads) out.row(t)[i] = to_float(row[i]);
}

// Values a thread keeps in registers; rows wider than kThreads times this are read again.
constexpr int kKept = 8;

template <typename X, typename Delta, typename Out>
__global__ void __launch_bounds__(kThreads)
    add_rms_norm_kernel(Matrix<X> x, Matrix<const Delta> delta, const float* gain, float eps,
                        Matrix<Out> out) {
  __shared__ float shared[kWarp];
  wait_for_predecessor();
  let_successor_begin();
  const int64_t t = blockIdx.x;
  X* row = x.row(t);
  float kept[kKept];
  float square = 0;
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int64_t i = threadIdx.x + int64_t(j) * kThreads;
    kept[j] = i < x.cols ? to_float(row[i]) : 0.0f;
    if (delta.data != nullptr && i < x.cols) {
      kept[j] += to_float(delta.row(t)[i]);
      row[i] = from_float<X>(kept[j]);
    }
    square += kept[j] * kept[j];
  }
  for (int64_t i = threadIdx.x + int64_t(kKept) * kThreads; i < x.cols; i += kThreads) {
    float value = to_float(row[i]);
    if (delta.data != nullptr) {
      value += to_float(delta.row(t)[i]);
      row[i] = from_float<X>(value);
    }
    square += value * value;
  }
  const float scale = 1.0f / sqrtf(block_sum(square, shared) / float(x.cols) + eps);
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int64_t i = threadIdx.x + int64_t(j) * kThreads;
    if (i < x.cols) out.row(t)[i] = from_float<Out>(kept[j] * scale * gain[i]);
  }
  for (int64_t i = threadIdx.x + int64_t(kKept) * kThreads; i < x.cols; i += kThreads) {
    out.row(t)[i] = from_float<Out>(to_float(row[i]) * scale * gain[i]);
  }
}

template <typename T>
__global__ void gather_kernel(Matrix<T> x, StepView step, Matrix<T> out) {
  wait_for_predecessor();
  let_successor_begin();
  const int64_t i = blockIdx.x;
  const T* row = x.row(step.logit_rows[i]);
  for (int64_t c = threadIdx.x; c < out.cols; c += kThreads) out.row(i)[c] = row[c];
}

template <typename T>
__global__ void silu_mul_kernel(Matrix<T> gate_up, Matrix<T> out) {
  wait_for_predecessor();
  let_successor_begin();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= out.cols) return;
  for (int64_t t = blockIdx.y; t < out.rows; t += gridDim.y) {
    const T* gate = gate_up.row(t);
    out.row(t)[i] = from_float<T>(silu(to_float(gate[i])) * to_float(gate[i + out.cols]));
  }
}

Grid block_a_row(int64_t rows) {
  return {.blocks = {unsigned(rows)}, .threads = kThreads};
}

}  // namespace

std::shared_ptr<const void> upload_table(const Uploads& to, const Weight& host, bool on_host) {
  auto table = std::make_shared<Table>();
  const bool plain = std::ranges::all_of(
      host.parts, [](const WeightPart& part) { return part.format == Format::kBF16; });
  if (!plain) {
    table->rows = std::static_pointer_cast<const DeviceRows>(upload_rows(to, host))->data;
    return table;
  }
  table->dtype = DType::kBF16;
  const size_t bytes = size_t(host.total_rows() * host.cols) * sizeof(bf16);
  if (on_host) table->pinned = PinnedMemory(bytes);
  char* rows = static_cast<char*>(on_host ? table->pinned.data() : to.arena.allocate(bytes));
  table->rows = rows;
  for (const WeightPart& part : host.parts) {
    const size_t size = size_t(part.rows * host.cols) * sizeof(bf16);
    CUDA_CHECK(cudaMemcpyAsync(rows, part.values, size, cudaMemcpyDefault, to.stream));
    rows += size;
  }
  CUDA_CHECK(cudaStreamSynchronize(to.stream));
  return table;
}

void embed(const Context& context, const Weight& table, Tensor out) {
  CHECK(table.cols == out.cols && out.rows == context.step.rows && out.dtype == DType::kF32, "%s",
        table.name.c_str());
  const Table& t = resident_as<Table>(table);
  with_activation(t.dtype, [&]<typename In>(In) {
    launch(context, block_a_row(out.rows), embed_kernel<In>, static_cast<const In*>(t.rows),
           context.step, Matrix<float>(out));
  });
}

void add_rms_norm(const Context& context, Tensor x, Tensor delta, const Weight& gain, float eps,
                  Tensor out) {
  CHECK(gain.cols == x.cols && out.cols == x.cols && out.rows == x.rows, "%s", gain.name.c_str());
  const float* gains = resident_as<DeviceRows>(gain).data;
  with_activation(x.dtype, [&]<typename X>(X) {
    with_activation(delta.data == nullptr ? out.dtype : delta.dtype, [&]<typename Delta>(Delta) {
      with_activation(out.dtype, [&]<typename Out>(Out) {
        launch(context, block_a_row(x.rows), add_rms_norm_kernel<X, Delta, Out>, Matrix<X>(x),
               Matrix<const Delta>(delta), gains, eps, Matrix<Out>(out));
      });
    });
  });
}

void gather_rows(const Context& context, Tensor x, Tensor out) {
  CHECK(x.cols == out.cols && x.dtype == out.dtype && out.rows == context.step.num_logit_rows);
  with_activation(x.dtype, [&]<typename T>(T) {
    launch(context, block_a_row(out.rows), gather_kernel<T>, Matrix<T>(x), context.step,
           Matrix<T>(out));
  });
}

void silu_mul(const Context& context, Tensor gate_up, Tensor out) {
  CHECK(gate_up.cols == 2 * out.cols && gate_up.rows == out.rows && gate_up.dtype == out.dtype);
  const Grid grid{
      .blocks = {blocks_for(out.cols, kThreads), unsigned(std::min<int64_t>(out.rows, 4096))},
      .threads = kThreads};
  with_activation(out.dtype, [&]<typename T>(T) {
    launch(context, grid, silu_mul_kernel<T>, Matrix<T>(gate_up), Matrix<T>(out));
  });
}

}  // namespace nibble::cuda
