// How much each calibration token counts in the moments of recipe best.
//
// What an error of the logits costs in KL follows the Fisher information of the token's prediction,
// whose trace is u = 1 - sum p^2: where the next token is certain, errors do no harm. But what a
// layer computes at one token is also read by later ones. Hence half and half:
//   w = 1/2 + 1/2 u / mean u
#pragma once

#include <functional>
#include <vector>

#include "compress/layer_runner.h"

namespace nibble {

// u of the prediction that these logits make.
double uncertainty(const float* logits, int64_t count);

// One weight for each row of the residual stream, mean 1: runs all tokens through the original
// model. `on_layer` is called before each layer, and with num_layers before the head.
std::vector<float> measure_token_weights(LayerRunner& runner, ThreadPool& pool,
                                         const std::function<void(int layer)>& on_layer);

}  // namespace nibble
