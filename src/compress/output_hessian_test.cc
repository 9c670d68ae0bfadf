#include "compress/output_hessian.h"

#include <gtest/gtest.h>

#include <random>

#include "checkpoint/checkpoint.h"

namespace nibble {
namespace {

const char* const kPocket = NIBBLE_SOURCE_DIR "/models/pocket";

// e' values e is what errors e change in the outputs of the linear that reads them.
TEST(OutputHessian, IsTheCostInTheReader) {
  const GlmConfig config = GlmConfig::load(kPocket);
  const Checkpoint checkpoint = Checkpoint::open(kPocket);
  const GlmWeights weights = GlmWeights::load(checkpoint, config);
  const GlmLayer& layer = weights.layers[2];
  ThreadPool pool(2);
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  std::vector<float> gain(size_t(config.kv_rank)),
      row(size_t(std::max(layer.o.cols, layer.kv_b.cols)));
  decode_row(layer.kv_norm, 0, gain.data());
  for (const LinearGroup& group : linear_groups(config, 2)) {
    const auto hessians = output_hessians(group, layer, config, pool);
    const bool latents = group.site == Site::kQkvA, values = group.site == Site::kKvB;
    ASSERT_EQ(hessians.size(), latents ? 1u : values ? size_t(config.heads) : 0u) << group.name();
    for (size_t head = 0; head < hessians.size(); ++head) {
      const OutputHessian& h = hessians[head];
      const int64_t per_head = config.nope_dim + config.value_dim;
      EXPECT_EQ(h.first, latents ? config.q_rank : int64_t(head) * per_head + config.nope_dim);
      EXPECT_EQ(h.size, latents ? config.kv_rank : config.value_dim);
      std::vector<double> errors(size_t(h.size));
      for (double& e : errors) e = normal(random);
      const Weight& reader = latents ? layer.kv_b : layer.o;
      double want = 0, got = 0;
      for (int64_t r = 0; r < reader.count * reader.rows; ++r) {
        decode_row(reader, r, row.data());
        double change = 0;
        for (int64_t k = 0; k < h.size; ++k) {
          change += latents ? double(row[size_t(k)]) * gain[size_t(k)] * errors[size_t(k)]
                            : row[head * size_t(h.size) + size_t(k)] * errors[size_t(k)];
        }
        want += change * change;
      }
      for (int64_t i = 0; i < h.size * h.size; ++i) {
        got += errors[size_t(i / h.size)] * h.values[size_t(i)] * errors[size_t(i % h.size)];
      }
      EXPECT_NEAR(got, want, 1e-4 * want) << group.name() << " " << head;
    }
  }
}

}  // namespace
}  // namespace nibble
