#include "backend/cuda/replay.h"

#include <algorithm>

namespace nibble::cuda {
namespace {

constexpr size_t kMaxRecords = 32;  // of about 1 MiB

}  // namespace

Replay::~Replay() {
  clear();
}

void Replay::clear() {
  for (const auto& [key, record] : records_) {
    if (record.graph != nullptr) cudaGraphExecDestroy(record.graph);
  }
  records_.clear();
}

void Replay::drop_oldest() {
  const auto oldest =
      std::ranges::min_element(records_, {}, [](const auto& item) { return item.second.last_use; });
  if (oldest->second.graph != nullptr) cudaGraphExecDestroy(oldest->second.graph);
  records_.erase(oldest);
}

void Replay::record(Record& record, cudaStream_t stream, const std::function<void()>& step) {
  cudaGraph_t graph = nullptr;
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  step();
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CUDA_CHECK(cudaGraphInstantiate(&record.graph, graph, 0));
  CUDA_CHECK(cudaGraphDestroy(graph));
}

void Replay::run(uint64_t key, cudaStream_t stream, const std::function<void()>& step) {
  auto found = records_.find(key);
  if (found == records_.end()) {
    if (records_.size() == kMaxRecords) drop_oldest();
    records_[key].last_use = ++uses_;
    return step();
  }
  Record& entry = found->second;
  if (entry.graph == nullptr) record(entry, stream, step);
  entry.last_use = ++uses_;
  CUDA_CHECK(cudaGraphLaunch(entry.graph, stream));
}

}  // namespace nibble::cuda
