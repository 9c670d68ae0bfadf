// The recipe "best": error feedback, one linear after another on what the ones before made.
#pragma once

#include <memory>
#include <set>
#include <vector>

#include "compress/layer_runner.h"
#include "compress/quantize.h"

namespace nibble {

struct Stage {  // linears that can be encoded from one pass over the tokens
  Block block = Block::kAttention;
  std::set<Site> sites{};
  bool last = false;  // of its block
};

// In the order in which a layer is worked through.
const std::vector<Stage>& best_stages();

// Both must outlive the encoder.
std::unique_ptr<LayerEncoder> make_best_encoder(LayerRunner& runner, ThreadPool& pool);

}  // namespace nibble
