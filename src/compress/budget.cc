#include "compress/budget.h"

#include <algorithm>

#include "compress/quantized_stack.h"
#include "compress/round_to_nearest.h"

namespace nibble {
namespace {

using Rows = std::vector<float>;

// The layer's output over all tokens, from the original input through the quantized version.
Rows run_layer(LayerRunner& runner) {
  runner.restart();
  Rows out(size_t(runner.tokens().num_tokens() * runner.config().hidden));
  for (const Slab& slab : runner.tokens().slabs()) {
    for (const Block block : {Block::kAttention, Block::kFeedForward}) {
      runner.run(Version::kQuantized, block, slab, {}, /*advance=*/true, {});
    }
    runner.read_stream(Version::kQuantized, slab,
                       out.data() + slab.first_row * runner.config().hidden);
  }
  return out;
}

double relative_change(const Rows& from, const Rows& to) {
  double change = 0, value = 0;
  for (size_t i = 0; i < from.size(); ++i) {
    const double d = double(to[i]) - from[i];
    change += d * d;
    value += double(from[i]) * from[i];
  }
  return value > 0 ? change / value : 0;
}

}  // namespace

std::vector<SiteLoss> measure_losses(const Recipe& recipe, LayerRunner& runner, ThreadPool& pool,
                                     const std::function<void(int layer)>& on_layer) {
  std::vector<SiteLoss> losses;
  runner.embed(nullptr);
  for (int l = 0; l < int(recipe.layers.size()); ++l) {
    on_layer(l);
    runner.begin_layer(l);
    const Rows original = run_layer(runner);
    std::map<Site, std::vector<const PlannedGroup*>> sites;
    for (const PlannedGroup& planned : recipe.layers[size_t(l)]) {
      if (planned.precision == Precision::kNvfp4) sites[planned.group.site].push_back(&planned);
    }
    for (const auto& [site, groups] : sites) {
      SiteLoss entry{.layer = l, .site = site};
      QuantizedStack stack(weight_at(runner.original(), site));
      for (const PlannedGroup* planned : groups) {
        stack.add(planned->group,
                  round_to_nearest(*planned->weight, planned->group, Precision::kNvfp4, pool));
        entry.extra_bytes += planned->group.rows * planned->group.cols * 7 / 16;
      }
      runner.replace(site, stack.take(groups));
      entry.loss = relative_change(original, run_layer(runner));
      runner.restore();
      losses.push_back(entry);
    }
    for (const Slab& slab : runner.tokens().slabs()) {
      for (const Block block : {Block::kAttention, Block::kFeedForward}) {
        runner.run(Version::kOriginal, block, slab, {}, /*advance=*/true, {});
      }
    }
  }
  return losses;
}

int64_t spend_budget(std::vector<SiteLoss> losses, int64_t bytes, Recipe& recipe) {
  std::stable_sort(losses.begin(), losses.end(), [](const SiteLoss& a, const SiteLoss& b) {
    const bool first_a = a.site == Site::kQkvA, first_b = b.site == Site::kQkvA;
    if (first_a != first_b) return first_a;
    return a.loss * double(b.extra_bytes) > b.loss * double(a.extra_bytes);
  });
  int64_t spent = 0;
  for (const SiteLoss& entry : losses) {
    if (spent + entry.extra_bytes > bytes) continue;
    spent += entry.extra_bytes;
    for (PlannedGroup& planned : recipe.layers[size_t(entry.layer)]) {
      if (planned.group.site != entry.site) continue;
      planned.precision = Precision::kFp8;
      planned.has_pre_quant_scale = false;
    }
  }
  return spent;
}

}  // namespace nibble
