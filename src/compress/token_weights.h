// How much each calibration token counts in the moments of recipe best.
//
// What an error of the logits costs in KL follows the Fisher information of the prediction, whose
// trace is u = 1 - sum p^2: where the next token is certain, errors do little harm. Nor do they
// where the model's prediction is not asked for, outside replies: u = 0 there. What a layer
// computes at a token is read by later ones too: r is what their u adds up to, each spread evenly
// over all tokens up to its own. u and r have one mean m:
//   w = 1/4 + (1/4 u + 1/2 r) / m
#pragma once

#include <functional>
#include <vector>

#include "compress/layer_runner.h"

namespace nibble {

// u of the prediction that these logits make.
double uncertainty(const float* logits, int64_t count);

// w of every row of the residual stream, from u [rows]; all 1 where every u is 0.
std::vector<float> token_weights(const CalibrationTokens& tokens, const std::vector<float>& u);

// Runs all tokens through the original model. `on_layer` is called before each layer, and with
// num_layers before the head.
std::vector<float> measure_token_weights(LayerRunner& runner, ThreadPool& pool,
                                         const std::function<void(int layer)>& on_layer);

}  // namespace nibble
