#include "compress/layer_runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "backend/create.h"
#include "checkpoint/checkpoint.h"

namespace nibble {
namespace {

const char* const kPocket = NIBBLE_SOURCE_DIR "/models/pocket";

TEST(LayerRunner, LayerByLayerIsTheForwardPass) {
  const GlmConfig config = GlmConfig::load(kPocket);
  const Checkpoint checkpoint = Checkpoint::open(kPocket);
  const GlmWeights weights = GlmWeights::load(checkpoint, config);
  const auto backend = create_backend({.device = "cpu", .threads = 2, .exact = true});
  const std::vector<std::vector<int32_t>> samples = {{5, 17, 900, 4000, 12, 77}, {3, 2, 1}};
  const CalibrationTokens tokens(samples);
  ASSERT_EQ(tokens.slabs().size(), 1u);
  const Slab& slab = tokens.slabs()[0];

  LayerRunner runner(config, weights, *backend, tokens, "");
  runner.embed(nullptr);
  std::vector<std::vector<float>> streams;
  std::vector<float> stream(size_t(tokens.num_tokens() * config.hidden));
  int64_t seen = 0;
  for (int l = 0; l < config.num_layers; ++l) {
    runner.read_stream(Version::kOriginal, slab, stream.data());
    streams.push_back(stream);
    runner.begin_layer(l);
    runner.run(Version::kOriginal, Block::kAttention, slab, {}, true, {});
    const std::set<Site> sites =
        config.is_dense(l) ? std::set{Site::kDown} : std::set{Site::kDown, Site::kExpertsDown};
    runner.run(Version::kOriginal, Block::kFeedForward, slab, sites, true,
               [&](Site site, const ObservedInputs& in) {
                 if (site == Site::kExpertsDown) seen += in.rows;
               });
  }
  EXPECT_EQ(seen, (config.num_layers - 1) * config.top_k * tokens.num_tokens());

  GlmWeights uploaded = weights;
  uploaded.upload(*backend);
  GlmFlash model(config, uploaded, *backend, 16, 1);
  std::vector<void*> memory;
  std::vector<KvLayer> caches;
  for (int l = 0; l < config.num_layers; ++l) {
    KvLayer cache{.format = KvFormat::kF32,
                  .page_size = CalibrationTokens::kPageSize,
                  .width = config.mla().record_dim(),
                  .latent = config.kv_rank};
    cache.data = backend->allocate(size_t(slab.num_pages * kv_page_bytes(cache)));
    memory.push_back(cache.data);
    caches.push_back(cache);
  }
  model.on_hidden_state = [&](int index, Tensor x) {
    if (index >= config.num_layers) return;
    // Sums of up to 1,024 terms in another order, in every layer so far.
    const double relative = (index + 1) * 1024 * 0x1p-24;
    for (int64_t t = 0; t < x.rows; ++t) {
      const float* want = x.row<float>(t);
      double largest = 0;
      for (int64_t k = 0; k < x.cols; ++k) largest = std::max<double>(largest, std::fabs(want[k]));
      for (int64_t k = 0; k < x.cols; ++k) {
        ASSERT_NEAR(streams[size_t(index)][size_t(t * x.cols + k)], want[k], relative * largest)
            << index;
      }
    }
  };
  Batch batch = slab.batch;
  batch.logit_rows = {0};
  model.forward(batch, caches);
  for (void* m : memory) backend->free(m);
}

TEST(ResidualStream, IsTheSameInAFile) {
  ResidualStream memory(5, 3, ""), file(5, 3, std::filesystem::temp_directory_path());
  const float rows[] = {1, 2, 3, 4, 5, 6};
  float read[6];
  for (ResidualStream* stream : {&memory, &file}) {
    stream->write(2, 2, rows);
    stream->read(2, 2, read);
    EXPECT_TRUE(std::equal(rows, rows + 6, read));
    stream->read(0, 1, read);
    EXPECT_EQ(read[0], 0);
  }
}

}  // namespace
}  // namespace nibble
