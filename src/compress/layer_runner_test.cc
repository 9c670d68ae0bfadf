#include "compress/layer_runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "backend/create.h"
#include "checkpoint/checkpoint.h"

namespace nibble {
namespace {

const char* const kPocket = NIBBLE_SOURCE_DIR "/models/pocket";

// Rows that were computed by sums of up to 1,024 terms in another order, `blocks` times over.
void expect_same_rows(const float* got, Tensor want, int blocks) {
  const double relative = blocks * 1024 * 0x1p-24;
  for (int64_t t = 0; t < want.rows; ++t, got += want.cols) {
    const float* row = want.row<float>(t);
    double largest = 0;
    for (int64_t k = 0; k < want.cols; ++k) largest = std::max<double>(largest, std::fabs(row[k]));
    for (int64_t k = 0; k < want.cols; ++k) {
      ASSERT_NEAR(got[k], row[k], relative * largest) << blocks;
    }
  }
}

TEST(LayerRunner, LayerByLayerIsTheForwardPass) {
  const GlmConfig config = GlmConfig::load(kPocket);
  const Checkpoint checkpoint = Checkpoint::open(kPocket);
  const GlmWeights weights = GlmWeights::load(checkpoint, config);
  const auto backend = create_backend({.device = "cpu", .threads = 2, .exact = true});
  const CalibrationTokens tokens({{.tokens = {5, 17, 900, 4000, 12, 77}}, {.tokens = {3, 2, 1}}});
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
  std::vector<float> logits;
  runner.begin_head();
  const std::vector<int> rows = {0, 3, 8};
  runner.run_head(slab, rows, [&](int64_t first, int64_t count, const std::vector<float>& some) {
    EXPECT_EQ(first, 0);
    EXPECT_EQ(count * config.vocab, int64_t(some.size()));
    logits = some;
  });

  GlmWeights uploaded = weights;
  uploaded.upload(*backend);
  GlmFlash model(config, uploaded, *backend, 16, 3);
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
    expect_same_rows(streams[size_t(index)].data(), x, index + 1);
  };
  Batch batch = slab.batch;
  batch.logit_rows.assign(rows.begin(), rows.end());
  expect_same_rows(logits.data(), model.forward(batch, caches), config.num_layers + 1);
  for (void* m : memory) backend->free(m);
}

// Two samples in front of the first layer.
class PocketRunner : public testing::Test {
 protected:
  PocketRunner() { runner.embed(nullptr); }

  const GlmConfig config = GlmConfig::load(kPocket);
  const Checkpoint checkpoint = Checkpoint::open(kPocket);
  const GlmWeights weights = GlmWeights::load(checkpoint, config);
  const std::unique_ptr<Backend> backend = create_backend({.device = "cpu", .threads = 2});
  const CalibrationTokens tokens{{{.tokens = {5, 17, 900, 4000, 12, 77}}, {.tokens = {3, 2, 1}}}};
  const Slab& slab = tokens.slabs()[0];
  LayerRunner runner{config, weights, *backend, tokens, ""};
};

TEST_F(PocketRunner, NamesTheTokensOfExperts) {
  runner.begin_layer(1);
  std::vector<float> all;  // what the shared expert reads, each expert reads of its tokens
  std::vector<int> reads(size_t(tokens.num_tokens()));
  for (const Site site : {Site::kGateUp, Site::kExpertsGateUp, Site::kExpertsDown}) {
    runner.run(Version::kOriginal, Block::kFeedForward, slab, {site}, /*advance=*/false,
               [&](Site, const ObservedInputs& in) {
                 if (site == Site::kGateUp) {
                   EXPECT_EQ(in.tokens, nullptr);
                   all.assign(in.x, in.x + in.rows * in.cols);
                   return;
                 }
                 for (int64_t r = 0; r < in.rows; ++r) {
                   ++reads[size_t(in.tokens[r])];
                   if (site == Site::kExpertsDown) continue;
                   EXPECT_TRUE(std::equal(in.x + r * in.cols, in.x + (r + 1) * in.cols,
                                          all.data() + in.tokens[r] * in.cols));
                 }
               });
  }
  for (const int count : reads) EXPECT_EQ(count, 2 * config.top_k);
}

TEST_F(PocketRunner, FinishesABlockFromWhatWasSeen) {
  runner.begin_layer(0);
  std::vector<float> want(size_t(tokens.num_tokens() * config.hidden)), got(want);
  for (const auto& [block, site] :
       {std::pair{Block::kAttention, Site::kO}, {Block::kFeedForward, Site::kDown}}) {
    std::vector<float> inputs;
    runner.run(
        Version::kQuantized, block, slab, {site}, /*advance=*/false,
        [&](Site, const ObservedInputs& in) { inputs.assign(in.x, in.x + in.rows * in.cols); });
    runner.run(Version::kOriginal, block, slab, {}, /*advance=*/true, {});
    runner.finish(Version::kQuantized, block, slab, site, inputs.data());
    runner.read_stream(Version::kOriginal, slab, want.data());
    runner.read_stream(Version::kQuantized, slab, got.data());
    EXPECT_EQ(got, want);
  }
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
