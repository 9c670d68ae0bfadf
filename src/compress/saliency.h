// Saliency of experts: how much of a layer's output each one is responsible for.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "compress/layer_runner.h"

namespace nibble {

enum class SaliencyMethod : uint8_t {
  kReap,       // mean over its tokens of routing weight * |output of the expert|
  kFrequency,  // number of its tokens
};

// Runs the layer, which has experts, over all tokens and moves the original stream past it; one
// value an expert.
std::vector<double> expert_saliency(LayerRunner& runner, SaliencyMethod method, ThreadPool& pool);

// The `count` experts of the largest saliency, in rising order; of equals the lowest.
std::vector<int> most_salient(const std::vector<double>& saliency, int count);

}  // namespace nibble
