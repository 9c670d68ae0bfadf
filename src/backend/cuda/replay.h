// Replay: a step recorded once as a CUDA graph, and launched as one thing from then on. Its kernels
// keep the right to begin before their predecessors end.
#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>

#include "backend/cuda/device.h"

namespace nibble::cuda {

class Replay {
 public:
  ~Replay();

  // Runs `step`, which launches into `stream`, at the first call with a key: what it needs is
  // allocated then. Records it at the second, and launches the record from then on.
  void run(uint64_t key, cudaStream_t stream, const std::function<void()>& step);

  // Forgets all records: addresses in them are no longer right.
  void clear();

 private:
  struct Record {
    cudaGraphExec_t graph = nullptr;
    uint64_t last_use = 0;
  };
  void record(Record& record, cudaStream_t stream, const std::function<void()>& step);
  void drop_oldest();

  std::unordered_map<uint64_t, Record> records_;
  uint64_t uses_ = 0;
};

}  // namespace nibble::cuda
