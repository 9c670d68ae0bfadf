// Sums over a row in the order of columns.cuh, so that a score is the same in both forms below.
//
// Few rows: a block takes four or eight experts of one row, its weights in registers before it
// waits; the last block of a row to arrive chooses. The norm before it may come in the same kernel.
// One row's may come in the kernel of its experts instead: route_row.cuh.
// Many rows: a block takes eight, 256 columns of them and of 48 experts in shared memory while the
// next are copied; a warp multiplies four rows by twelve experts.
//
// Few rows are bound by latency: in a step of 64 rows on an H100 norm and routing take 6.5 us, of
// which 0.2 MB of weights take 0.1. By itself, 48 experts of 2048: 1 row 3.6 us, 64 rows 4.9. 2048
// rows take 21.7 us, 18.5 TFLOP/s in FP32, of 67 that the vendor states.
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
// Blocks of many rows that a multiprocessor's shared memory has room for.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 800 && __CUDA_ARCH__ != 900
constexpr int kManyBlocks = 1;
#else
constexpr int kManyBlocks = 2;
#endif
// Of a block of many rows: as many warps, which choose for a row each; before, groups of them have
// the same kRowsAWarp rows and some experts each.
constexpr int kManyRows = 8, kRowsAWarp = 4;
constexpr int kExpertGroups = kManyRows / (kManyRows / kRowsAWarp);

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

// A step of 256 columns of a block's rows and of some experts, in shared memory.
template <typename W, int kExperts>
struct RoutingStep {
  bf16 x[kManyRows][kStepColumns];
  W router[kExperts][kStepColumns];
};

// Columns k .. k + 7 of a row of `cols`, zeros beyond, while others compute; where eights are not
// whole everywhere, at once.
template <typename T>
__device__ __forceinline__ void copy_columns(const T* from, int k, int cols, bool whole,
                                             T* shared) {
  if (whole) {
    const auto* eight = reinterpret_cast<const uint4*>(k < cols ? from + k : from);
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 2); ++i) {
      copy_async_16(reinterpret_cast<uint4*>(shared) + i, eight + i, k < cols);
    }
    return;
  }
#pragma unroll 1  // or it takes registers from the sums
  for (int i = 0; i < kLaneColumns; ++i) {
    shared[i] = k + i < cols ? from[k + i] : from_float<T>(0.0f);
  }
}

// Step j of rows from `row` on and of experts from `first` on, as many as there are.
template <typename W, int kExperts>
__device__ __forceinline__ void copy_step(const Matrix<const bf16>& x, const W* router, int first,
                                          int num_experts, int j, bool whole,
                                          RoutingStep<W, kExperts>& step) {
  const int warp = int(threadIdx.x) / kWarp, at = int(threadIdx.x) % kWarp * kLaneColumns;
  const int cols = int(x.cols), k = j * kStepColumns + at;
  const int64_t row = int64_t(blockIdx.x) * kManyRows + warp;
  if (row < x.rows) copy_columns(x.row(row), k, cols, whole, step.x[warp] + at);
  const int count = min(num_experts - first, kExperts);
#pragma unroll 1  // or it takes registers from the sums
  for (int e = warp; e < count; e += kManyRows) {
    copy_columns(router + (first + e) * cols, k, cols, whole, step.router[e] + at);
  }
}

// Adds a step's products of kRowsAWarp rows and kEach experts to a lane's sums.
template <typename W, int kEach>
__device__ __forceinline__ void add_step(const bf16 (*x)[kStepColumns],
                                         const W (*router)[kStepColumns],
                                         float (&sums)[kRowsAWarp * kEach]) {
  const int at = int(threadIdx.x) % kWarp * kLaneColumns;
  float v[kRowsAWarp][kLaneColumns];
#pragma unroll
  for (int r = 0; r < kRowsAWarp; ++r) {
    Columns<bf16> columns;
    columns.load(x[r] + at);
    unpack(columns, v[r]);
  }
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    if (e % 4 == 0) __syncwarp();  // or more is fetched before than registers hold
    Columns<W> columns;
    columns.load(router[e] + at);
    float w[kLaneColumns];
    unpack(columns, w);
#pragma unroll
    for (int r = 0; r < kRowsAWarp; ++r) sums[e * kRowsAWarp + r] += products(v[r], w);
  }
}

// A block's warps are two groups of kRowsAWarp rows by four of kEach experts; experts beyond come
// in further passes. While a step is multiplied, the next one is copied.
template <typename W, int kEach>
__global__ void __launch_bounds__(kManyRows* kWarp, kManyBlocks)
    many_rows_kernel(Matrix<const bf16> x, const W* router, bool whole, Choosing choosing,
                     Matrix<int32_t> experts, Matrix<float> weights) {
  constexpr int kExperts = kExpertGroups * kEach, kSums = kRowsAWarp * kEach;
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ float scores[kManyRows][kMaxExperts];
  auto* staged = reinterpret_cast<RoutingStep<W, kExperts>*>(shared);  // [2]
  const int num_experts = choosing.shape.num_experts;
  const int warp = int(threadIdx.x) / kWarp;
  const int first_row = warp / kExpertGroups * kRowsAWarp;
  const int first_expert = warp % kExpertGroups * kEach;
  choosing.scores = scores[0];
  choosing.stride = kMaxExperts;
  const int64_t row = int64_t(blockIdx.x) * kManyRows;
  const int steps = int(x.cols + kStepColumns - 1) / kStepColumns;
  wait_for_predecessor();
  let_successor_begin();
  for (int first = 0; first < num_experts; first += kExperts) {
    float sums[kSums] = {};
    for (int j = 0; j <= steps; ++j) {
      if (j < steps) copy_step(x, router, first, num_experts, j, whole, staged[j % 2]);
      commit_copies();
      if (j == 0) continue;
      wait_for_copies<1>();
      __syncthreads();
      const RoutingStep<W, kExperts>& step = staged[(j - 1) % 2];
      add_step<W, kEach>(step.x + first_row, step.router + first_expert, sums);
      __syncthreads();
    }
    for_each_warp_sum(sums, [&](int i, float sum) {
      const int e = first + first_expert + i / kRowsAWarp;
      if (e < num_experts) scores[first_row + i % kRowsAWarp][e] = sigmoid(sum);
    });
    __syncthreads();
  }
  if (row + warp < x.rows) {
    const LaneBias<kMaxExperts / kWarp> bias(choosing);
    choose(choosing, bias, warp, experts.row(row + warp), weights.row(row + warp));
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
  const bool whole = x.cols % kLaneColumns == 0 && x.stride % kLaneColumns == 0 &&
                     reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
  with_activation(on_card.dtype, [&]<typename W>(W) {
    const auto run = [&]<int kEach>(std::integral_constant<int, kEach>) {
      const auto kernel = many_rows_kernel<W, kEach>;
      const Grid grid{.blocks = {blocks_for(x.rows, kManyRows)},
                      .threads = kManyRows * kWarp,
                      .shared_bytes = 2 * sizeof(RoutingStep<W, kExpertGroups * kEach>)};
      allow_shared(kernel, grid.shared_bytes);
      launch(context, grid, kernel, Matrix<const bf16>(x), static_cast<const W*>(on_card.rows),
             whole, choosing, Matrix<int32_t>(out.experts), Matrix<float>(out.weights));
    };
    constexpr int kMore = 24 / sizeof(W), kFew = 16 / sizeof(W);  // of what shared memory holds
    const auto computed = [&](int each) {
      return int64_t(blocks_for(shape.num_experts, kExpertGroups * each)) * each;
    };
    if (computed(kMore) <= computed(kFew)) return run(std::integral_constant<int, kMore>());
    run(std::integral_constant<int, kFew>());
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
