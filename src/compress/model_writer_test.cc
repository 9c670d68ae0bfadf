#include "compress/model_writer.h"

#include "backend/create.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/test_files.h"
#include "model/glm_dummy.h"
#include "model/glm_flash.h"

namespace nibble {
namespace {

const char* const kPocket = NIBBLE_SOURCE_DIR "/models/pocket";

// Of a prompt's last tokens.
std::vector<float> logits_of(const GlmConfig& config, GlmWeights weights) {
  const auto backend = create_backend({.device = "cpu", .threads = 2});
  weights.upload(*backend);
  const std::vector<int32_t> tokens = {5, 17, 900, 4000, 12, 77, 6143};
  GlmFlash model(config, weights, *backend, int(tokens.size()), 3);
  KvLayer layer{.page_size = 16, .width = config.mla().record_dim(), .latent = config.kv_rank};
  std::vector<KvLayer> caches;
  for (int l = 0; l < config.num_layers; ++l) {
    layer.data = backend->allocate(size_t(kv_page_bytes(layer)));
    caches.push_back(layer);
  }
  const Tensor logits = model.forward({.tokens = tokens,
                                       .segments = {{.num_rows = int(tokens.size())}},
                                       .pages = {0},
                                       .logit_rows = {2, 5, 6}},
                                      caches);
  std::vector<float> values(size_t(logits.rows * logits.cols));
  backend->read(logits.data, values.data(), values.size() * sizeof(float));
  for (const KvLayer& cache : caches) backend->free(cache.data);
  return values;
}

class ModelWriterTest : public FolderTest {
 protected:
  std::filesystem::path target() const { return folder_ / "made"; }

  // Two layers of the pocket's widths, other stop ids, experts of `expert_dim`.
  static GlmConfig config_of(int expert_dim) {
    GlmConfig config = GlmConfig::load(kPocket);
    config.num_layers = 2;
    config.expert_dim = expert_dim;
    config.eos_token_ids = {11, 6000};
    return config;
  }

  void expect_same_when_read_again(const GlmConfig& config) {
    const GlmWeights weights = dummy_weights(config);
    int64_t done = 0, total = 0;
    write_model(config, weights, kPocket, target(), [&](WrittenShare share) {
      EXPECT_GT(share.done_bytes, done);
      done = share.done_bytes;
      total = share.total_bytes;
    });
    EXPECT_NEAR(double(done), double(total), 0.01 * double(total));  // the rest: headers
    GlmConfig read = GlmConfig::load(target());
    EXPECT_EQ(read.quantization.method(), "modelopt");
    EXPECT_EQ(read.to_json(), config.to_json());
    EXPECT_EQ(read.eos_token_ids, config.eos_token_ids);
    const GlmWeights loaded = GlmWeights::load(Checkpoint::open(target()), read);
    EXPECT_TRUE(logits_of(read, loaded) == logits_of(config, weights));
    EXPECT_TRUE(std::filesystem::exists(target() / "tokenizer.json"));
  }
};

TEST_F(ModelWriterTest, ReadsBackAsTheSameModel) {
  expect_same_when_read_again(config_of(64));
}

// Their down projections have too odd a K for NVFP4 and are BF16.
TEST_F(ModelWriterTest, KeepsWhatIsNotNvfp4) {
  expect_same_when_read_again(config_of(24));
}

TEST_F(ModelWriterTest, LeavesAFolderAlone) {
  std::filesystem::create_directory(target());
  const GlmConfig config = config_of(64);
  EXPECT_ERROR(write_model(config, dummy_weights(config), kPocket, target()), "is there already");
  EXPECT_TRUE(std::filesystem::is_empty(target()));
  std::filesystem::remove(target());
  std::ofstream(target()) << "a file";
  EXPECT_ERROR(write_model(config, dummy_weights(config), kPocket, target() / "inside"), "made");
}

}  // namespace
}  // namespace nibble
