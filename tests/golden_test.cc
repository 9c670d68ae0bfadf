// The pocket model against transformers' goldens, and against itself: however a request is cut,
// batched, cached or preempted, its tokens are the same.
#include <cmath>
#include <cstring>

#include "base/mmap_file.h"
#include "tests/pocket_model.h"

namespace nibble {
namespace {

Request greedy(const std::vector<int32_t>& prompt, int max_tokens = 160) {
  return {.prompt = prompt, .sampling = {.temperature = 0, .max_tokens = max_tokens}};
}

std::vector<float> tensor_values(const StoredTensor& tensor) {
  std::vector<float> values(size_t(tensor.num_elements()));
  std::memcpy(values.data(), tensor.data, values.size() * sizeof(float));
  return values;
}

// The largest difference, and where it is; of values over 1 relative to them: the residual stream
// reaches 3,000, where FP32 itself has steps of 2.4e-4.
struct Worst {
  double error = 0;
  size_t index = 0;
};

Worst worst_of(const float* got, const std::vector<float>& want) {
  Worst worst;
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::fabs(double(got[i]) - want[i]) / std::fmax(1.0, std::fabs(want[i]));
    if (!(error <= worst.error)) worst = {error, i};
  }
  return worst;
}

TEST(Golden, ReferenceLogitsAndHiddenStatesEqualTransformers) {
  PocketModel pocket("reference");
  const Checkpoint goldens = [] {
    static const MmapFile file(kPocketFolder + "/goldens.safetensors");
    return Checkpoint::parse("goldens.safetensors", file.data(), file.size());
  }();
  GlmFlash model(pocket.config, pocket.weights, *pocket.backend, 1024, 1);
  std::vector<KvLayer> caches(
      size_t(pocket.config.num_layers),
      {.format = KvFormat::kF32, .page_size = 16, .width = 576, .latent = 512});
  for (KvLayer& layer : caches) {
    layer.data = pocket.backend->allocate(size_t(kv_page_bytes(layer)) * 64);
  }
  Worst worst_logit, worst_hidden;
  for (const Golden& golden : load_goldens()) {
    Batch batch{.tokens = golden.input_ids,
                .segments = {{.num_rows = int(golden.input_ids.size())}},
                .logit_rows = {int(golden.input_ids.size()) - 1}};
    for (int p = 0; p < 64; ++p) batch.pages.push_back(p);
    model.on_hidden_state = [&](int index, Tensor x) {
      const auto* want = goldens.find("hidden." + golden.family + "." + std::to_string(index));
      if (want == nullptr) return;
      const Worst worst = worst_of(x.row<float>(0), tensor_values(*want));
      EXPECT_LE(worst.error, 2e-4) << "hidden state " << index << " at " << worst.index;
      if (worst.error > worst_hidden.error) worst_hidden = worst;
    };
    const Tensor logits = model.forward(batch, caches);
    const Worst worst =
        worst_of(logits.row<float>(0), tensor_values(*goldens.find("logits." + golden.family)));
    EXPECT_LE(worst.error, 2e-4) << golden.family << " at logit " << worst.index;
    if (worst.error > worst_logit.error) worst_logit = worst;
  }
  std::printf("worst logit off by %.2e, worst hidden value by %.2e\n", worst_logit.error,
              worst_hidden.error);
  for (const KvLayer& layer : caches) pocket.backend->free(layer.data);
}

class GoldenTest : public testing::TestWithParam<const char*> {};

TEST_P(GoldenTest, GreedyIdsEqualTransformers) {
  if (!is_here(GetParam())) GTEST_SKIP() << "no CUDA device here";
  PocketModel pocket(GetParam());
  auto server = pocket.serve({.num_pages = 400});
  std::vector<std::shared_ptr<TokenStream>> streams;
  const auto goldens = load_goldens();
  for (const Golden& golden : goldens)
    streams.push_back(server.engine->submit(greedy(golden.input_ids)));
  for (size_t i = 0; i < goldens.size(); ++i) {
    EXPECT_EQ(drain(*server.engine, *streams[i]), goldens[i].greedy_ids) << goldens[i].family;
  }
}

// Where the two best logits are closer than this, rounding inputs to BF16 may choose the other.
constexpr float kNearTie = 0.5f;

TEST_P(GoldenTest, GreedyIdsOfAModeloptExportEqualItsReference) {
  if (!is_here(GetParam())) GTEST_SKIP() << "no CUDA device here";
  PocketModel pocket(GetParam(), kModeloptFolder);
  auto server = pocket.serve({.num_pages = 400});
  int compared = 0;
  for (const Golden& golden : load_goldens(kModeloptFolder)) {
    if (golden.arithmetic != "w4a16") continue;
    auto stream = server.engine->submit(greedy(golden.input_ids, 32));
    const auto ids = drain(*server.engine, *stream);
    const size_t length = std::min(ids.size(), golden.greedy_ids.size());
    size_t same = 0;
    while (same < length && ids[same] == golden.greedy_ids[same]) ++same;
    if (same < golden.greedy_ids.size()) {
      EXPECT_LT(golden.gap[same], kNearTie) << golden.family << " at step " << same;
    } else {
      EXPECT_EQ(ids.size(), golden.greedy_ids.size()) << golden.family;
    }
    compared += int(same);
  }
  EXPECT_GT(compared, 250);
}

INSTANTIATE_TEST_SUITE_P(Backends, GoldenTest, testing::Values("reference", "cpu", "cuda"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace nibble
