// Recipe: which linears of a model are stored in which precision, and by which method they get
// there.
#pragma once

#include <string>
#include <vector>

#include "compress/encoded.h"
#include "compress/linears.h"
#include "compress/options.h"

namespace nibble {

enum class Method : uint8_t { kRoundToNearest, kAwqLite, kBest };
enum class DiskFormat : uint8_t { kModelOpt, kCompressedTensors };

struct PlannedGroup {
  LinearGroup group{};
  const Weight* weight = nullptr;
  Precision precision = Precision::kNvfp4;
  bool has_input_scale = false;  // stores the largest input that calibration saw
  bool has_pre_quant_scale = false;
};

struct Recipe {
  Method method = Method::kBest;
  DiskFormat format = DiskFormat::kModelOpt;
  bool kv_cache_fp8 = false;
  std::vector<std::vector<PlannedGroup>> layers{};
  PlannedGroup embedding{};
  PlannedGroup lm_head{};

  // Throws Error that names the flag: an unknown name, a pattern that matches no linear or only
  // some of a group, columns that are no multiple of 16. `weights` must outlive the result.
  static Recipe make(const QuantizeOptions& options, const GlmConfig& config,
                     const GlmWeights& weights);

  bool calibrates() const { return method != Method::kRoundToNearest; }
  // "W4A16_NVFP4", as ModelOpt labels it.
  std::string label() const;
  bool has(Precision precision) const;  // in any group
  // Visits every group: embedding, layers, head.
  template <typename Visit>
  void for_each(Visit&& visit) const {
    visit(embedding);
    for (const auto& layer : layers) {
      for (const PlannedGroup& planned : layer) visit(planned);
    }
    visit(lm_head);
  }
};

}  // namespace nibble
