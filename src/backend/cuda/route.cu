// Sums over a row in the order of columns.cuh, so that a score is the same in both forms below.
//
// Few rows: a block takes four or eight experts of one row, its weights in registers before it
// waits; the last block of a row to arrive chooses. The norm before it may come in the same kernel.
// One row's may come in the kernel of its experts instead: route_row.cuh.
// Many rows: weights are read once for 8 rows. Few rows are bound by latency, many by FP32: in a
// step of 64 rows on an H100 norm and routing take 6.5 us, of which 0.2 MB of weights take 0.1. By
// itself, 48 experts of 2048: 1 row 3.4 us, 64 rows 8.3, 2048 rows 81: 5 TFLOP/s.
#include <algorithm>

#include "backend/cuda/choice.cuh"
#include "backend/cuda/dtypes.h"
#include "backend/cuda/norm_row.cuh"
#include "backend/cuda/products.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/route.h"
#include "base/error.h"

namespace nibble::cuda {
namespace {

constexpr int kFewRows = kMaxStreamedRows;
constexpr int kFewWarps = 8;
// A block's experts: more of them for more rows, so that the blocks are there all at once.
constexpr int kFewExperts = 4, kMoreExperts = 8, kMoreExpertsRows = 16;
constexpr int kFewColumns = kFewWarps * kStepColumns;
constexpr int kManyWarps = 8, kRowsAWarp = 1, kManyExperts = 8;

// A block multiplies one row by kExperts experts, a warp a step of columns each. With a norm, x
// is its output: blocks compute it for themselves, the first stores it, and the last one stores x +
// delta, which by then nobody reads any more.
template <typename W, bool kWithNorm, int kEach, int kExperts>
__global__ void __launch_bounds__(kFewWarps* kWarp, kEach > 2 || sizeof(W) > 2 ? 2 : 3)
    few_rows_kernel(NormRows<float> norm, Matrix<bf16> x, const W* router, Choosing choosing,
                    float* all_scores, unsigned* arrived, Matrix<int32_t> experts,
                    Matrix<float> weights) {
  __shared__ float squares_of[kFewWarps * kWarp];
  __shared__ float partials[kExperts][kFewWarps][kWarp];
  __shared__ __align__(16) float added[kWithNorm ? kFewColumns : kLaneColumns];
  let_successor_begin();
  const int64_t t = blockIdx.y;
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const int num_experts = choosing.shape.num_experts, cols = int(x.cols);
  const int first = int(blockIdx.x) * kExperts, column = int(threadIdx.x) * kLaneColumns;
  Columns<W> w[kExperts] = {};
  float v[kLaneColumns] = {};
#pragma unroll
  for (int i = 0; i < kExperts; ++i) {
    const int64_t e = min(first + i, num_experts - 1);
    if (column < cols) w[i] = raw_columns(router + e * cols, column, cols);
  }
  Columns<float> gains{};
  if constexpr (kWithNorm) gains = gains_of_thread(norm);
  wait_for_predecessor();
  const LaneBias<kEach> bias(choosing);  // long before it is used
  if constexpr (kWithNorm) {
    norm_row(norm, gains, t, squares_of, added, v);
    if (blockIdx.x == 0 && column < cols) store_whole_columns(v, x.row(t) + column);
  } else if (column < cols) {
    load_columns(x.row(t), column, cols, v);
  }
#pragma unroll
  for (int i = 0; i < kExperts; ++i) {
    float row[kLaneColumns];
    unpack(w[i], row);
    partials[i][warp][lane] = products(v, row);
  }
  __syncthreads();
  if (warp < kExperts && first + warp < num_experts) {
    float sum = 0;
    for (int j = 0; j * kStepColumns < cols; ++j) sum += partials[warp][j][lane];
    sum = warp_sum(sum);
    if (lane == 0) {
      __stcg(all_scores + t * num_experts + first + warp, sigmoid(sum));
      __threadfence();
    }
  }
  __syncthreads();
  const bool arrives = threadIdx.x == 0;
  if (!__syncthreads_or(arrives && atomicAdd(arrived + t, 1u) == gridDim.x - 1)) return;
  if constexpr (kWithNorm) store_added(norm, t, added);
  if (warp > 0) return;
  __threadfence();
  if (lane == 0) arrived[t] = 0;
  choose(choosing, bias, int(t), experts.row(t), weights.row(t));
}

// A warp takes kRowsAWarp rows, which stay in registers; a block's warps share some experts at a
// time.
template <typename W>
__global__ void __launch_bounds__(kManyWarps* kWarp, 2)
    many_rows_kernel(Matrix<const bf16> x, const W* router, Choosing choosing,
                     Matrix<int32_t> experts, Matrix<float> weights) {
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ float scores[kManyWarps * kRowsAWarp][kMaxExperts];
  auto* staged = reinterpret_cast<W*>(shared);  // [kManyExperts, kFewColumns]
  const int num_experts = choosing.shape.num_experts, cols = int(x.cols);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  choosing.scores = scores[0];
  choosing.stride = kMaxExperts;
  const LaneBias<kMaxExperts / kWarp> bias(choosing);
  wait_for_predecessor();
  let_successor_begin();
  const int64_t row = (int64_t(blockIdx.x) * kManyWarps + warp) * kRowsAWarp;
  float v[kRowsAWarp][kFewWarps][kLaneColumns] = {};
#pragma unroll
  for (int j = 0; j < kFewWarps; ++j) {
    const int column = j * kStepColumns + lane * kLaneColumns;
#pragma unroll
    for (int r = 0; r < kRowsAWarp; ++r) {
      if (column < cols) load_columns(x.row(min(row + r, x.rows - 1)), column, cols, v[r][j]);
    }
  }
  for (int first = 0; first < num_experts; first += kManyExperts) {
    const int count = min(kManyExperts, num_experts - first);
    __syncthreads();
    for (int e = 0; e < count; ++e) {
      const int column = int(threadIdx.x) * kLaneColumns;
      float w[kLaneColumns] = {};
      if (column < cols) load_columns(router + int64_t(first + e) * cols, column, cols, w);
      store_columns(w, column, kFewColumns, staged + e * kFewColumns);
    }
    __syncthreads();
    for (int e = 0; e < count; ++e) {
      float sums[kRowsAWarp] = {};
#pragma unroll
      for (int j = 0; j < kFewWarps; ++j) {
        if (j * kStepColumns >= cols) break;
        Columns<W> columns;
        columns.load(staged + e * kFewColumns + j * kStepColumns + lane * kLaneColumns);
        float w[kLaneColumns];
        unpack(columns, w);
#pragma unroll
        for (int r = 0; r < kRowsAWarp; ++r) sums[r] += products(v[r][j], w);
      }
#pragma unroll
      for (int r = 0; r < kRowsAWarp; ++r) {
        const float sum = warp_sum(sums[r]);
        if (lane == 0) scores[warp * kRowsAWarp + r][first + e] = sigmoid(sum);
      }
    }
  }
  __syncwarp();
  for (int r = 0; r < kRowsAWarp && row + r < x.rows; ++r) {
    choose(choosing, bias, warp * kRowsAWarp + r, experts.row(row + r), weights.row(row + r));
  }
}

}  // namespace

std::shared_ptr<const void> upload_router(const Uploads& to, const Weight& host) {
  if (host.rows > kMaxExperts || host.cols > kFewColumns) {
    throw Error(host.name + ": " + std::to_string(host.rows) + " experts of " +
                std::to_string(host.cols) + " columns; on a card at most " +
                std::to_string(kMaxExperts) + " of " + std::to_string(kFewColumns) +
                " are supported: use --device cpu");
  }
  Router router;
  const bool plain = std::ranges::all_of(host.parts, [](const WeightPart& part) {
    return part.format == Format::kBF16 && part.input_scales == nullptr;
  });
  if (plain) {
    char* rows = static_cast<char*>(to.arena.allocate(size_t(host.rows * host.cols) * 2));
    router.rows = rows;
    router.dtype = DType::kBF16;
    for (const WeightPart& part : host.parts) {
      const Piece piece{.from = part.values, .bytes = size_t(part.rows * host.cols) * 2};
      to.feed.send(rows, {&piece, 1}, to.stream);
      rows += piece.bytes;
    }
  } else {
    router.rows = std::static_pointer_cast<const DeviceRows>(upload_rows(to, host))->data;
  }
  router.scores =
      static_cast<float*>(to.arena.allocate(size_t(kFewRows * host.rows) * sizeof(float)));
  router.arrived = static_cast<unsigned*>(to.arena.allocate(kFewRows * sizeof(unsigned)));
  CUDA_CHECK(cudaMemsetAsync(router.arrived, 0, kFewRows * sizeof(unsigned), to.stream));
  return std::make_shared<Router>(router);
}

namespace {

void check(Tensor x, const Weight& router, const Weight& bias, const RouterShape& shape) {
  CHECK(x.cols == router.cols && router.rows == shape.num_experts &&
            bias.cols == shape.num_experts && shape.top_k <= shape.num_experts &&
            shape.num_experts <= kMaxExperts && shape.top_k <= kWarp && x.cols <= kFewColumns &&
            x.dtype == DType::kBF16,
        "%s", router.name.c_str());
}

template <bool kWithNorm>
void route_few(const Context& context, const NormRows<float>& norm, Tensor x, const Router& on_card,
               const Choosing& choosing, Routing out) {
  constexpr int kFewEach = 2, kMostEach = kMaxExperts / kWarp;
  const auto run = [&]<int kExperts>(std::integral_constant<int, kExperts>) {
    const Grid grid{.blocks = {blocks_for(choosing.shape.num_experts, kExperts), unsigned(x.rows)},
                    .threads = kFewWarps * kWarp};
    const bool few = choosing.shape.num_experts <= kFewEach * kWarp;
    with_activation(on_card.dtype, [&]<typename W>(W) {
      launch(context, grid,
             few ? few_rows_kernel<W, kWithNorm, kFewEach, kExperts>
                 : few_rows_kernel<W, kWithNorm, kMostEach, kExperts>,
             norm, Matrix<bf16>(x), static_cast<const W*>(on_card.rows), choosing, on_card.scores,
             on_card.arrived, Matrix<int32_t>(out.experts), Matrix<float>(out.weights));
    });
  };
  if (x.rows > kMoreExpertsRows) return run(std::integral_constant<int, kMoreExperts>());
  run(std::integral_constant<int, kFewExperts>());
}

Choosing choosing_of(const NormedRoute& route) {
  return {route.router->scores, route.shape.num_experts, route.bias, route.shape};
}

}  // namespace

void route(const Context& context, Tensor x, const Weight& router, const Weight& bias,
           const RouterShape& shape, Routing out) {
  check(x, router, bias, shape);
  const Router& on_card = resident_as<Router>(router);
  const Choosing choosing{on_card.scores, shape.num_experts, resident_as<DeviceRows>(bias).data,
                          shape};
  if (x.rows <= kFewRows) return route_few<false>(context, {}, x, on_card, choosing, out);
  with_activation(on_card.dtype, [&]<typename W>(W) {
    const Grid grid{.blocks = {blocks_for(x.rows, kManyWarps * kRowsAWarp)},
                    .threads = kManyWarps * kWarp,
                    .shared_bytes = kManyExperts * kFewColumns * sizeof(W)};
    allow_shared(many_rows_kernel<W>, grid.shared_bytes);
    launch(context, grid, many_rows_kernel<W>, Matrix<const bf16>(x),
           static_cast<const W*>(on_card.rows), choosing, Matrix<int32_t>(out.experts),
           Matrix<float>(out.weights));
  });
}

bool can_route_with(const Norm& norm) {
  return !norm.delta_sums && norm.x.dtype == DType::kF32 && norm.x.rows <= kFewRows &&
         is_in_steps(norm);
}

NormedRoute route_of(const Norm& norm, const Weight& router, const Weight& bias,
                     const RouterShape& shape, Routing out) {
  check(norm.out, router, bias, shape);
  return {.norm = norm,
          .router = &resident_as<Router>(router),
          .bias = resident_as<DeviceRows>(bias).data,
          .shape = shape,
          .out = out};
}

void norm_and_route(const Context& context, const NormedRoute& route) {
  const NormRows<float> rows(route.norm);
  route_few<true>(context, rows, route.norm.out, *route.router, choosing_of(route), route.out);
}

}  // namespace nibble::cuda
