// The recipe "awq-lite": ModelOpt's search, with scales folded where that is exact.
//
//   scale of                fold into
//   q_a, kv_a               input_layernorm, whose only readers they are
//   q_b; kv_b               q_a_layernorm; kv_a_layernorm
//   dense gate, up          post_attention_layernorm, whose only readers they are in a dense layer
//   down                    the rows of up
//   o                       the value rows of kv_b
//   experts' and shared expert's gate, up    kept as pre_quant_scale; with --fold there is none,
//                           because the router reads the same norm
#pragma once

#include <memory>

#include "compress/layer_runner.h"
#include "compress/quantize.h"

namespace nibble {

std::unique_ptr<LayerEncoder> make_awq_encoder(LayerRunner& runner, ThreadPool& pool);

}  // namespace nibble
