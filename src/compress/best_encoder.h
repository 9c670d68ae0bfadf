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

// Inputs of o that are kept until it is encoded, so that attention need not be computed again; of
// as many slabs as have room.
inline constexpr int64_t kMostKeptBytes = int64_t(1) << 29;

// In the order in which a layer is worked through.
const std::vector<Stage>& best_stages();

// Both must outlive the encoder.
std::unique_ptr<LayerEncoder> make_best_encoder(LayerRunner& runner, ThreadPool& pool);

}  // namespace nibble
