// The norm of one row by all warps of a block at once, a step of columns each, as part of the
// kernel that wants its output. Device code.
#pragma once

#include "backend/cuda/columns.cuh"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/rows.h"

namespace nibble::cuda {

// x += delta; out = x / sqrt(mean(x^2) + eps) * gain. Rows are aligned to 16 bytes and have whole
// steps, no more than the block has warps. X: float, or bf16 without a delta.
template <typename X>
struct NormRows {
  Matrix<X> x;
  Matrix<const bf16> delta;  // without data: none
  const float* gain = nullptr;
  float inverse_cols = 0, eps = 0;
  Matrix<bf16> out;

  NormRows() = default;
  explicit NormRows(const Norm& norm)
      : x(norm.x),
        delta(norm.delta),
        gain(norm.gain),
        inverse_cols(1.0f / float(norm.x.cols)),
        eps(norm.eps),
        out(norm.out) {}
};

// A delta as it lies in memory.
struct StoredDelta {
  Matrix<const bf16> rows;

  __device__ __forceinline__ void begin(int64_t) const {}
  __device__ __forceinline__ Columns<bf16> operator()(int64_t row, int column) const {
    Columns<bf16> columns;
    columns.load(rows.row(row) + column);
    return columns;
  }
};

// The gain of a thread's columns: to be fetched before the row is there.
template <typename X>
__device__ __forceinline__ Columns<float> gains_of_thread(const NormRows<X>& norm) {
  const int column = int(threadIdx.x) * kLaneColumns;
  Columns<float> gains{};
  if (column < norm.x.cols) gains.load(norm.gain + column);
  return gains;
}

// The same in shared memory, where the thread put it to keep its registers free.
struct StagedGains {
  float* at;
};
__device__ __forceinline__ void unpack(const StagedGains& gains, float (&v)[kLaneColumns]) {
  asm volatile("" ::: "memory");  // not earlier
  Columns<float> columns;
  columns.load(gains.at);
  unpack(columns, v);
}

// Gives each thread that has some, 8 columns from 8 threadIdx.x on, the norm's output in v,
// rounded; leaves v to the others. Stores nothing in x; afterwards x and delta have been read by
// all threads. In shared memory: sums, kWarp floats a step; added, the row's x + delta where there
// is a delta. delta_of(row, column): a thread's columns of delta, called where there is one.
template <typename X, typename Gains, typename DeltaOf>
__device__ __forceinline__ void norm_row(const NormRows<X>& norm, const Gains& gains, int64_t row,
                                         float* sums, float* added, float (&v)[kLaneColumns],
                                         DeltaOf&& delta_of) {
  const int column = int(threadIdx.x) * kLaneColumns, steps = int(norm.x.cols) / kStepColumns;
  const bool has_columns = column < norm.x.cols;
  if (has_columns) {
    Columns<X> values;
    Columns<bf16> delta{};
    values.load(norm.x.row(row) + column);
    if (norm.delta.data != nullptr) delta = delta_of(row, column);
    unpack(values, v);
    if (norm.delta.data != nullptr) {
      float d[kLaneColumns];
      unpack(delta, d);
      add_columns(d, v);
      store_whole_columns(v, added + column);
    }
    sums[threadIdx.x] = squares(v);
  }
  __syncthreads();
  if (!has_columns) return;
  float square = 0, gain[kLaneColumns];
#pragma unroll
  for (int j = 0; j < RowColumns::kSteps; ++j) {
    if (j < steps) square += sums[j * kWarp + int(threadIdx.x) % kWarp];
  }
  float scale = norm_scale(square, norm.inverse_cols, norm.eps);
  compute_now(scale);
  unpack(gains, gain);
  scale_columns(scale, gain, v);
  round_columns(v);
}

template <typename X, typename Gains>
__device__ __forceinline__ void norm_row(const NormRows<X>& norm, const Gains& gains, int64_t row,
                                         float* sums, float* added, float (&v)[kLaneColumns]) {
  norm_row(norm, gains, row, sums, added, v, StoredDelta{norm.delta});
}

// x += delta of a row, from what its threads left in `added`. Only once no other block reads x any
// more.
__device__ __forceinline__ void store_added(const NormRows<float>& norm, int64_t row,
                                            const float* added) {
  const int column = int(threadIdx.x) * kLaneColumns;
  if (norm.delta.data == nullptr || column >= norm.x.cols) return;
  Columns<float> values;
  values.load(added + column);
  float v[kLaneColumns];
  unpack(values, v);
  store_whole_columns(v, norm.x.row(row) + column);
}
__device__ __forceinline__ void store_added(const NormRows<bf16>&, int64_t, const float*) {}

// The norm of one row that every block of a kernel makes for itself: the first block stores it, and
// the last to have read x stores x + delta.
template <typename X>
struct SharedNorm {
  NormRows<X> rows;
  unsigned* arrived;  // 0 between launches
  unsigned ticket = 0;

  explicit SharedNorm(const Norm& norm) : rows(norm), arrived(norm.arrived) {}

  // Once this thread's predecessor may be read. Afterwards all threads find the output in `inputs`,
  // in shared memory, as are sums and added: see norm_row().
  template <typename Gains>
  __device__ __forceinline__ void make(const Gains& gains, float* sums, float* added,
                                       bf16* inputs) {
    const int column = int(threadIdx.x) * kLaneColumns;
    float v[kLaneColumns];
    norm_row(rows, gains, 0, sums, added, v);
    if (column < rows.x.cols) {
      store_whole_columns(v, inputs + column);
      if (blockIdx.x == 0) store_whole_columns(v, rows.out.data + column);
    }
    if (rows.delta.data != nullptr && threadIdx.x == 0) {
      ticket = take_ticket(arrived, gridDim.x - 1);
    }
    __syncthreads();
  }
  // In place of a barrier, once the ticket has had its time.
  __device__ __forceinline__ void meet(const float* added) const {
    if (rows.delta.data == nullptr) return __syncthreads();
    const bool is_last = threadIdx.x == 0 && ticket == gridDim.x - 1;
    if (!__syncthreads_or(is_last)) return;
    store_added(rows, 0, added);
  }
};

}  // namespace nibble::cuda
