// LayerRunner: the calibration tokens, layer by layer, through the model as it was and through the
// model quantized so far, side by side.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>

#include "base/thread_pool.h"
#include "compress/calibrating_backend.h"
#include "compress/calibration_tokens.h"
#include "compress/kept_array.h"
#include "compress/linears.h"
#include "compress/residual_stream.h"
#include "model/glm_flash.h"

namespace nibble {

enum class Block : uint8_t { kAttention, kFeedForward };
enum class Version : uint8_t { kOriginal, kQuantized };

class LayerRunner {
 public:
  // `weights` are views of the model's own weights, not uploaded.
  LayerRunner(const GlmConfig& config, const GlmWeights& weights, Backend& backend,
              const CalibrationTokens& tokens, const std::filesystem::path& spill);
  ~LayerRunner();

  // Puts the embeddings into both streams; the quantized one takes those of `quantized`, if given.
  void embed(const Weight* quantized);

  // Makes the layer ready: both versions are the original one. Frees the layer before.
  void begin_layer(int layer);
  // Makes what is behind the last layer ready. Frees the layer before; begin_layer frees the head.
  void begin_head();
  // Replaces a weight of the quantized version; `weight` is not uploaded yet.
  void replace(Site site, const Weight& weight);
  // All weights of the quantized version are the original ones again.
  void restore() { layers_[1] = layers_[0]; }
  // The quantized stream goes on from where the original one is.
  void restart();

  using Observer = std::function<void(Site site, const ObservedInputs& inputs)>;
  // Runs a slab through a block of one version and shows the inputs of `sites`; with `advance` the
  // stream moves on behind the block, otherwise the run may end after the last site.
  void run(Version version, Block block, const Slab& slab, const std::set<Site>& sites,
           bool advance, const Observer& observer);

  // The same to the end of the block, but from the linear of `site` on, whose inputs an earlier run
  // has shown: x [rows, cols].
  void finish(Version version, Block block, const Slab& slab, Site site, const float* x);

  // Shows the logits [count, vocab] that the original version has for some rows of a slab, from
  // rows[first] on, kHeadRows at a time; valid during the call.
  using LogitsObserver =
      std::function<void(int64_t first, int64_t count, const std::vector<float>& logits)>;
  void run_head(const Slab& slab, const std::vector<int>& rows, const LogitsObserver& observer);
  static constexpr int kHeadRows = 64;

  // |quantized - original| / |original| of the streams as they are now.
  double stream_error();
  // Rows of a stream, for what comes after the layers.
  void read_stream(Version version, const Slab& slab, float* out) const;

  const CalibrationTokens& tokens() const { return tokens_; }
  const GlmConfig& config() const { return config_; }
  // The layer's original weights, uploaded or not; decode_row works on them.
  const GlmLayer& original() const { return layers_[0]; }

 private:
  ResidualStream& stream(Version version) const;
  GlmLayer& use(Version version);
  void run_block(Version version, Block block, const Slab& slab, bool advance);
  void free_layer();

  const GlmConfig& config_;
  const GlmWeights& host_;
  CalibratingBackend backend_;
  const CalibrationTokens& tokens_;
  GlmWeights weights_;                      // of model_; the layer at work is swapped in
  std::unique_ptr<GlmFlash> model_, head_;  // the head has logits, few rows and nothing else
  std::unique_ptr<ResidualStream> streams_[2];
  GlmLayer layers_[2];  // uploaded: original, quantized
  int layer_ = -1;
  KeptArray<float> rows_{}, more_rows_{};  // slabs of spilled streams
  void* x_ = nullptr;                      // a slab of a stream, on the backend
  void* cache_ = nullptr;
};

}  // namespace nibble
