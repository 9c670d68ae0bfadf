// out[t] = the sum over a row's slots of weight * products: a thread some columns of a row.
#include "backend/cuda/experts_products.h"
#include "backend/cuda/experts_work.cuh"

namespace nibble::cuda {
namespace {

constexpr int kCombineThreads = 256;

// A thread has kEach columns: four where all rows begin at a multiple of four.
template <int kEach>
__global__ void __launch_bounds__(kCombineThreads)
    combine_slots_kernel(Matrix<const float> weights, const float* products, int outputs,
                         Results out, int* counters, int num_counters) {
  let_successor_begin();
  wait_for_predecessor();
  const int n = int(blockIdx.x * blockDim.x + threadIdx.x) * kEach, t = int(blockIdx.y);
  if (blockIdx.x == 0 && t == 0) {
    for (int i = int(threadIdx.x); i < num_counters; i += int(blockDim.x)) counters[i] = 0;
  }
  if (n >= outputs) return;
  const int top_k = int(weights.cols);
  const auto weight_of = stored_weights(weights.row(t));
  const float* from = products + int64_t(t) * top_k * outputs + n;
  if constexpr (kEach == 4) {
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (int k = 0; k < top_k; ++k) {
      const float weight = weight_of(k);
      const float4 v = *reinterpret_cast<const float4*>(from + int64_t(k) * outputs);
      sum = make_float4(fmaf(weight, v.x, sum.x), fmaf(weight, v.y, sum.y),
                        fmaf(weight, v.z, sum.z), fmaf(weight, v.w, sum.w));
    }
    store_4(out, t, n, sum);
  } else {
    store(out, t, n, sum_of_slots(weight_of, from, outputs, top_k));
  }
}

}  // namespace

void combine_slots(const Context& context, const SlotSums& sums) {
  const Results& out = sums.out;
  const auto combine = [&]<int kEach>() {
    launch(
        context,
        {.blocks = {blocks_for(sums.outputs, kEach * kCombineThreads), unsigned(sums.weights.rows)},
         .threads = kCombineThreads},
        combine_slots_kernel<kEach>, Matrix<const float>(sums.weights), sums.products, sums.outputs,
        out, sums.counters, sums.num_counters);
  };
  const bool by_four = sums.outputs % 4 == 0 && out.stride % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(out.data) % 16 == 0;
  by_four ? combine.operator()<4>() : combine.operator()<1>();
}

}  // namespace nibble::cuda
