// mla_store: the cache records of the batch's rows.
#pragma once

#include "backend/backend.h"
#include "backend/cpu/rope.h"
#include "backend/cpu/workers.h"

namespace nibble {

class MlaStore {
 public:
  explicit MlaStore(Workers& workers) : workers_(workers), records_(size_t(workers.size())) {}

  void run(Tensor kv, const Weight& gain, const MlaShape& shape, const Batch& batch,
           const KvLayer& cache, const RopeTable& rope);

 private:
  Workers& workers_;
  std::vector<Scratch<float>> records_;  // one a thread
};

}  // namespace nibble
