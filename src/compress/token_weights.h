// How much each calibration token counts in the moments of recipe best.
//
// What an error of the logits costs in KL follows the Fisher information of the prediction, whose
// trace is u = 1 - sum p^2: where the next token is certain, errors do little harm. Nor do they
// where the model's prediction is not asked for, outside replies: u = 0 there. A prediction reads
// what the layers computed at all tokens before: r is what a token gets when each u is spread
// evenly over the tokens up to its own.
//   w = 1/4 + 3/4 r / mean r
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
