// nibble prune: a checkpoint with fewer routed experts.
#include "compress/prune.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>

#include "apps/calibration_file.h"
#include "apps/dry_run.h"
#include "apps/model_files.h"
#include "apps/subcommands.h"
#include "apps/terminal.h"
#include "backend/create.h"

namespace nibble {
namespace {

void print_layers(const std::vector<PrunedLayer>& layers) {
  std::vector<std::vector<std::string>> rows = {
      {"layer", "least kept", "most left out", "left out"}};
  for (const PrunedLayer& layer : layers) {
    if (layer.saliency.empty()) continue;
    double kept = 0, dropped = 0;
    std::string names;
    bool first = true;
    for (int e = 0; e < int(layer.saliency.size()); ++e) {
      const double saliency = layer.saliency[size_t(e)];
      if (std::binary_search(layer.kept.begin(), layer.kept.end(), e)) {
        kept = first ? saliency : std::min(kept, saliency);
        first = false;
      } else {
        dropped = std::max(dropped, saliency);
        names += (names.empty() ? "" : " ") + std::to_string(e);
      }
    }
    rows.push_back(
        {std::to_string(layer.layer), format_number(kept, 4), format_number(dropped, 4), names});
  }
  std::printf("%s\n", table(rows).c_str());
}

}  // namespace

int prune(const PruneFlags& flags) {
  const auto start = std::chrono::steady_clock::now();
  return_freed_memory();
  PruneJob job{.options = flags.prune};
  job.options.source = find_model(flags.prune.source.string());
  const CalibrationFlags& c = flags.calibration;
  const int threads = c.threads > 0 ? c.threads : num_physical_cores();
  ThreadPool pool(threads);
  const auto backend = create_backend({.device = c.device, .threads = threads});
  const CalibrationTokens tokens(load_calibration(job.options.source, c));
  job.options.calibration_key = tokens.key();
  if (flags.dry_run) {
    print_estimate(job.estimate(tokens, *backend, pool), job.options.target, job.options.spill);
    return 0;
  }
  std::optional<LayerRunner> runner;
  job.make_runner = [&](const GlmConfig& config, const GlmWeights& weights) -> LayerRunner& {
    return runner.emplace(config, weights, *backend, tokens, job.options.spill);
  };
  ProgressLine line;
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  job.on_progress = [&](const PruneProgress& p) {
    const double share = double(p.layer) / p.num_layers;
    std::string text = ProgressLine::bar(share) + "  layer " + std::to_string(p.layer + 1) +
                       " of " + std::to_string(p.num_layers);
    if (share > 0) text += ", " + format_number(seconds() * (1 - share) / share, 0) + " s left";
    line.show(text);
  };
  print_layers(job.run(pool));
  std::printf("%s: %d experts a layer, in %.1f s\n", flags.prune.target.c_str(),
              flags.prune.experts, seconds());
  return 0;
}

}  // namespace nibble
