// mla_store as kernels of its own, a block a row.
//
// us on an H100 80GB HBM3 for INT8: 1 row 1.7, 64 rows 1.9, which is the launch; 2048 rows 4.8, 24
// % of 3.1 TB/s.
#include "backend/cuda/dtypes.h"
#include "backend/cuda/mla.h"
#include "backend/cuda/mla_store.cuh"

namespace nibble::cuda {
namespace {

template <typename In>
__global__ void __launch_bounds__(kStoreThreads)
    store_kernel(StoreRows<In> rows, Rope rope, StepView step) {
  __shared__ StoreShared s;
  const StorePlace place(rows, rope, step, int(blockIdx.x));
  wait_for_predecessor();
  let_successor_begin();
  store_row(rows, int(blockIdx.x), place, s);
}

}  // namespace

Store store_of(Tensor kv, const Weight& gain, const MlaShape& shape, const KvLayer& cache) {
  CHECK(shape.latent_dim == kLatent && shape.rope_dim == kRope, "latent %d, rope %d",
        shape.latent_dim, shape.rope_dim);
  return {kv, resident_as<DeviceRows>(gain).data, shape, cache};
}

void mla_store(const Context& context, const Store& store) {
  const Rope rope = rope_of(store.shape.rope_dim, store.shape.rope_theta);
  with_activation(store.kv.dtype, [&]<typename In>(In) {
    launch(context, {.blocks = {unsigned(store.kv.rows)}, .threads = kStoreThreads},
           store_kernel<In>, store_rows_of<In>(store), rope, context.step);
  });
}

}  // namespace nibble::cuda
