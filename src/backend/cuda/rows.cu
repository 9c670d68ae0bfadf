// A block or a warp a row. Bound by the launch at the sizes of one token, by memory at those of a
// prefill.
//
// us on an H100 80GB HBM3 (backend_bench --benchmark_filter=wide), adding and norm of rows of 2048
// / silu_mul of rows of 10240: 1 row 2.1 / 1.7, 64 rows 2.4 / 3.8, 2048 rows 15.7 (as fast as
// memory, from which some of it need not come) / 106 (39 % of 3.1 TB/s).
#include <algorithm>
#include <cstring>
#include <vector>

#include "backend/cuda/dtypes.h"
#include "backend/cuda/norm_row.cuh"
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
  let_successor_begin();
  wait_for_predecessor();
  const int64_t t = blockIdx.x;
  int32_t token = step.tokens[t];
  if (token < 0) token = step.chosen[-1 - token];
  const In* row = table + int64_t(token) * out.cols;
  for (int64_t i = threadIdx.x; i < out.cols; i += kThreads) out.row(t)[i] = to_float(row[i]);
}

constexpr int kNormWarps = 4;  // rows a block
constexpr int64_t kFewRows = 64;

// A delta that is the sum of experts' products (SlotSums): made, stored and taken at once.
struct SummedDelta {
  Matrix<const float> weights;
  const float* products;
  Matrix<bf16> out;
  int* counters;
  int num_counters;

  __device__ __forceinline__ void begin(int64_t row) const {
    if (row > 0) return;
    for (int i = int(threadIdx.x); i < num_counters; i += int(blockDim.x)) counters[i] = 0;
  }
  __device__ __forceinline__ Columns<bf16> operator()(int64_t row, int column) const {
    const int slots = int(weights.cols);
    const float* from = products + row * slots * out.cols + column;
    float sum[kLaneColumns] = {}, product[kLaneColumns];
#pragma unroll 5
    for (int k = 0; k < slots; ++k) {
      const float weight = __ldcg(weights.row(row) + k);
      Columns<float> columns;
      columns.load(from + k * out.cols);
      unpack(columns, product);
#pragma unroll
      for (int i = 0; i < kLaneColumns; ++i) sum[i] = fmaf(weight, product[i], sum[i]);
    }
    store_whole_columns(sum, out.row(row) + column);
    __align__(16) bf16 rounded[kLaneColumns];
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) rounded[i] = from_float<bf16>(sum[i]);
    Columns<bf16> columns;
    columns.load(rounded);
    return columns;
  }
};

// A block a row.
template <typename X, typename Delta>
__global__ void __launch_bounds__(RowColumns::kSteps* kWarp)
    few_rows_norm_kernel(NormRows<X> norm, Delta delta) {
  __shared__ float sums[RowColumns::kSteps * kWarp];
  __shared__ __align__(16) float added[RowColumns::kColumns];
  let_successor_begin();
  const int64_t t = blockIdx.x, column = int64_t(threadIdx.x) * kLaneColumns;
  const Columns<float> gains = gains_of_thread(norm);
  wait_for_predecessor();
  delta.begin(t);
  float v[kLaneColumns];
  norm_row(norm, gains, t, sums, added, v, delta);
  if (column < norm.x.cols) store_whole_columns(v, norm.out.row(t) + column);
  store_added(norm, t, added);
}

// Loads come first, all of them: a load does not pass a store that may be to the same place.
template <typename X>
__global__ void __launch_bounds__(kNormWarps* kWarp)
    add_rms_norm_kernel(Matrix<X> x, Matrix<const bf16> delta, const float* gain, float eps,
                        Matrix<bf16> out) {
  const int64_t t = int64_t(blockIdx.x) * kNormWarps + threadIdx.x / kWarp;
  const int64_t cols = x.cols, rest = RowColumns::kColumns + threadIdx.x % kWarp * kLaneColumns;
  RowColumns gains, values, added;
  gains.load(gain, cols);
  const float inverse_cols = 1.0f / float(cols);
  wait_for_predecessor();
  let_successor_begin();
  if (t >= x.rows) return;
  X* row = x.row(t);
  values.load(row, cols);
  float v[kLaneColumns], w[kLaneColumns], square = 0;
  if (delta.data != nullptr) {
    added.load(delta.row(t), cols);
#pragma unroll
    for (int j = 0; j < RowColumns::kSteps; ++j) add_columns(added.v[j], values.v[j]);
    values.for_each(cols, [&](int k, auto& to) { store_columns(to, k, cols, row); });
  }
  values.for_each(cols, [&](int, auto& of) { square += squares(of); });
  for (int64_t k = rest; k < cols; k += kStepColumns) {
    load_columns(row, k, cols, v);
    if (delta.data != nullptr) {
      load_columns(delta.row(t), k, cols, w);
      add_columns(w, v);
      store_columns(v, k, cols, row);
    }
    square += squares(v);
  }
  const float scale = norm_scale(square, inverse_cols, eps);
#pragma unroll
  for (int j = 0; j < RowColumns::kSteps; ++j) scale_columns(scale, gains.v[j], values.v[j]);
  values.for_each(cols, [&](int k, auto& of) { store_columns(of, k, cols, out.row(t)); });
  for (int64_t k = rest; k < cols; k += kStepColumns) {
    load_columns(row, k, cols, v);
    load_columns(gain, k, cols, w);
    scale_columns(scale, w, v);
    store_columns(v, k, cols, out.row(t));
  }
}

template <typename T>
__global__ void gather_kernel(Matrix<T> x, StepView step, Matrix<T> out) {
  let_successor_begin();
  wait_for_predecessor();
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
  std::vector<Piece> pieces;
  size_t at = 0;
  for (const WeightPart& part : host.parts) {
    const size_t size = size_t(part.rows * host.cols) * sizeof(bf16);
    pieces.push_back({.from = part.values, .bytes = size, .at = at});
    at += size;
  }
  if (on_host) {
    to.feed.gather(rows, pieces);
  } else {
    to.feed.send(rows, pieces, to.stream);
  }
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

Norm norm_of(Tensor x, Tensor delta, const Weight& gain, float eps, Tensor out) {
  CHECK(gain.cols == x.cols && out.cols == x.cols && out.rows == x.rows, "%s", gain.name.c_str());
  return {
      .x = x, .delta = delta, .gain = resident_as<DeviceRows>(gain).data, .eps = eps, .out = out};
}

bool is_in_steps(const Norm& norm) {
  const auto is_aligned = [](const Tensor& t) {
    return t.data == nullptr ||
           (reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.stride % kLaneColumns == 0);
  };
  return norm.x.cols % kStepColumns == 0 && norm.x.cols <= RowColumns::kColumns &&
         is_aligned(norm.x) && is_aligned(norm.delta) && is_aligned(norm.out);
}

bool can_add_sums(const Norm& norm, const SlotSums& sums) {
  return norm.delta.data == sums.out.data && norm.delta.stride == sums.out.stride &&
         norm.delta.rows == sums.weights.rows && norm.delta.cols == sums.outputs &&
         norm.delta.dtype == DType::kBF16 && !sums.out.is_f32 && norm.x.dtype == DType::kF32 &&
         norm.x.rows <= kFewRows && is_in_steps(norm);
}

void add_rms_norm(const Context& context, const Norm& norm) {
  const Grid grid{.blocks = {blocks_for(norm.x.rows, kNormWarps)}, .threads = kNormWarps * kWarp};
  const DType delta = norm.delta.data == nullptr ? DType::kBF16 : norm.delta.dtype;
  CHECK(delta == DType::kBF16 && norm.out.dtype == DType::kBF16);
  with_activation(norm.x.dtype, [&]<typename X>(X) {
    const auto few_rows = [&]<typename Delta>(const Delta& of) {
      launch(context, {.blocks = {unsigned(norm.x.rows)}, .threads = RowColumns::kSteps * kWarp},
             few_rows_norm_kernel<X, Delta>, NormRows<X>(norm), of);
    };
    if (norm.delta_sums) {
      const SlotSums& sums = *norm.delta_sums;
      return few_rows(SummedDelta{Matrix<const float>(sums.weights), sums.products,
                                  Matrix<bf16>(norm.delta), sums.counters, sums.num_counters});
    }
    const bool adds_to_bf16 = norm.delta.data != nullptr && norm.x.dtype != DType::kF32;
    if (norm.x.rows <= kFewRows && is_in_steps(norm) && !adds_to_bf16) {
      return few_rows(StoredDelta{Matrix<const bf16>(norm.delta)});
    }
    launch(context, grid, add_rms_norm_kernel<X>, Matrix<X>(norm.x), Matrix<const bf16>(norm.delta),
           norm.gain, norm.eps, Matrix<bf16>(norm.out));
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
