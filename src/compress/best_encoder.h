// The recipe "best": error feedback, one linear after another on what the ones before made.
#pragma once

#include <memory>

#include "compress/layer_runner.h"
#include "compress/quantize.h"

namespace nibble {

// Both must outlive the encoder.
std::unique_ptr<LayerEncoder> make_best_encoder(LayerRunner& runner, ThreadPool& pool);

}  // namespace nibble
