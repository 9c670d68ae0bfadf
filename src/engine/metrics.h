// What the engine counts: written by its thread, read by any, no locks. Names and arithmetic are
// those of vLLM's Prometheus metrics (the server adds the "vllm:" prefix and renders them).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/histogram.h"

namespace nibble {

struct EngineMetrics {
  // Gauges
  std::atomic<int64_t> num_requests_running{0};
  std::atomic<int64_t> num_requests_waiting{0};
  std::atomic<int64_t> num_pages{0};
  std::atomic<int64_t> num_pages_used{0};  // referenced by requests; cached ones count as free
  // Counters
  std::atomic<int64_t> prompt_tokens{0};
  std::atomic<int64_t> generation_tokens{0};
  std::atomic<int64_t> prefix_cache_queries{0};  // tokens
  std::atomic<int64_t> prefix_cache_hits{0};     // tokens
  std::atomic<int64_t> num_preemptions{0};
  std::array<std::atomic<int64_t>, 4> request_success{};  // by FinishReason
  // Histograms: seconds, or tokens
  Histogram time_to_first_token{kTimeToFirstTokenBuckets};
  Histogram inter_token_latency{kTokenTimeBuckets};
  Histogram request_time_per_output_token{kTokenTimeBuckets};
  Histogram e2e_request_latency{kRequestTimeBuckets};
  Histogram request_queue_time{kRequestTimeBuckets};
  Histogram request_inference_time{kRequestTimeBuckets};
  Histogram request_prefill_time{kRequestTimeBuckets};
  Histogram request_decode_time{kRequestTimeBuckets};
  Histogram iteration_tokens{kIterationTokenBuckets};
  Histogram request_prompt_tokens{kTokenCountBuckets};
  Histogram request_generation_tokens{kTokenCountBuckets};
  Histogram request_params_max_tokens{kTokenCountBuckets};
};

}  // namespace nibble
