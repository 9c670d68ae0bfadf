// nibble quantize: a BF16 checkpoint becomes an NVFP4 one.
#include "compress/quantize.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <map>
#include <optional>

#include "apps/calibration_file.h"
#include "apps/dry_run.h"
#include "apps/model_files.h"
#include "apps/subcommands.h"
#include "apps/terminal.h"
#include "backend/create.h"
#include "base/error.h"
#include "compress/awq_encoder.h"
#include "compress/best_encoder.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string gigabytes(int64_t bytes) {
  return format_number(double(bytes) / 1e9, bytes < 1'000'000'000 ? 3 : 1) + " GB";
}

// "layers.3.mlp.experts.5.gate_up" -> "mlp.experts.gate_up": one row of the table.
std::string kind_of(const std::string& group) {
  std::string kind;
  size_t begin = 0;
  while (begin < group.size()) {
    const size_t end = std::min(group.find('.', begin), group.size());
    const std::string word = group.substr(begin, end - begin);
    const bool number = word.find_first_not_of("0123456789") == std::string::npos;
    if (!number && word != "layers") kind += (kind.empty() ? "" : ".") + word;
    begin = end + 1;
  }
  return kind;
}

struct KindSummary {
  int count = 0;
  double sum = 0, worst = 0;
  std::string worst_name{};
  int fell_back = 0;
};

void print_report(const QuantizeReport& report, const std::string& target, double seconds) {
  std::map<std::string, KindSummary> kinds;
  for (const LayerReport& layer : report.layers) {
    for (const GroupReport& group : layer.groups) {
      KindSummary& kind = kinds[kind_of(group.name)];
      ++kind.count;
      kind.sum += group.error;
      kind.fell_back += group.fell_back;
      if (group.error < kind.worst) continue;
      kind.worst = group.error;
      kind.worst_name = group.name;
    }
  }
  std::vector<std::vector<std::string>> rows = {
      {"linears", "count", "mean error %", "worst %", "where"}};
  for (const auto& [name, kind] : kinds) {
    rows.push_back({name, std::to_string(kind.count), format_number(100 * kind.sum / kind.count, 2),
                    format_number(100 * kind.worst, 2), kind.worst_name});
  }
  std::printf("%s\n", table(rows).c_str());
  if (!report.layers.empty() && report.layers.back().stream_error >= 0) {
    rows = {{"layer", "error of its output %"}};
    for (const LayerReport& layer : report.layers) {
      rows.push_back({std::to_string(layer.layer), format_number(100 * layer.stream_error, 2)});
    }
    std::printf("%s\n", table(rows).c_str());
  }
  std::printf("%s: %s, %s from %s, in %.1f s\n", target.c_str(), report.label.c_str(),
              gigabytes(report.target_bytes).c_str(), gigabytes(report.source_bytes).c_str(),
              seconds);
}

// "+1%" -> 0.01
double share_of(const std::string& budget) {
  const std::string digits = budget.substr(budget.starts_with("+") ? 1 : 0);
  double percent = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), percent);
  const bool whole = end == digits.data() + digits.size() - 1 && *end == '%';
  if (error != std::errc() || !whole || !(percent > 0 && percent <= 100)) {
    throw Error("--budget " + budget + ": must be a percentage of the result's bytes, such as +1%");
  }
  return percent / 100;
}

// Losses are measured on a first part of the tokens.
std::vector<SiteLoss> losses_of(const Recipe& recipe, const GlmConfig& config,
                                const GlmWeights& weights, Backend& backend,
                                std::vector<CalibrationSample> samples, ThreadPool& pool,
                                ProgressLine& line) {
  size_t rows = 0, count = 0;
  while (count < samples.size() && rows < CalibrationTokens::kSlabRows) {
    rows += samples[count++].tokens.size();
  }
  samples.resize(count);
  const CalibrationTokens tokens(samples);
  LayerRunner runner(config, weights, backend, tokens, {});
  return measure_losses(recipe, runner, pool, [&](int layer) {
    line.show("measuring losses, layer " + std::to_string(layer + 1) + " of " +
              std::to_string(config.num_layers));
  });
}

// What the line says of a run: how far it is, how fast, and when its part will be done.
class ProgressText {
 public:
  explicit ProgressText(int64_t tokens) : tokens_(tokens) {}

  std::string at(const QuantizeProgress& p) {
    if (p.weighing != weighing_) {
      start_ = Clock::now();
      first_share_ = p.share;
      weighing_ = p.weighing;
    }
    const double seconds = seconds_since(start_), done = p.share - first_share_;
    std::string text =
        ProgressLine::bar(p.share) + (p.weighing ? "  weighing tokens, layer " : "  layer ") +
        std::to_string(std::min(p.layer + 1, p.num_layers)) + " of " + std::to_string(p.num_layers);
    if (done <= 0) return text;
    if (p.weighing) text += ", " + format_number(done * double(tokens_) / seconds, 0) + " tokens/s";
    return text + ", " + format_number(seconds * (1 - p.share) / done, 0) + " s left";
  }

 private:
  const int64_t tokens_;
  Clock::time_point start_ = Clock::now();
  double first_share_ = 0;
  bool weighing_ = false;
};

}  // namespace

int quantize(const QuantizeFlags& flags) {
  const auto start = Clock::now();
  return_freed_memory();
  QuantizeJob job{.options = flags.quantize};
  job.options.source = find_model(flags.quantize.source.string());
  const CalibrationFlags& c = flags.calibration;
  const int threads = c.threads > 0 ? c.threads : num_physical_cores();
  ThreadPool pool(threads);
  const auto backend = create_backend({.device = c.device, .threads = threads});
  if (!flags.budget.empty()) job.options.budget = share_of(flags.budget);
  std::vector<CalibrationSample> samples;
  std::optional<CalibrationTokens> tokens;
  std::optional<LayerRunner> runner;
  if (job.options.recipe != "rtn") {
    samples = load_calibration(job.options.source, c);
    tokens.emplace(samples);
    job.options.calibration_key = tokens->key();
  }
  if (flags.dry_run) {
    const RunEstimate estimate = job.estimate(tokens ? &*tokens : nullptr, *backend, threads);
    print_estimate(estimate, job.options.target, job.options.spill);
    return 0;
  }
  job.make_encoder = [&](const Recipe& recipe, const GlmConfig& config, const GlmWeights& weights) {
    if (recipe.method == Method::kRoundToNearest) return make_nearest_encoder(pool);
    runner.emplace(config, weights, *backend, *tokens, job.options.spill);
    if (recipe.method == Method::kAwqLite) return make_awq_encoder(*runner, pool);
    return make_best_encoder(*runner, pool);
  };
  ProgressLine line;
  job.measure_losses = [&](const Recipe& recipe, const GlmConfig& config,
                           const GlmWeights& weights) {
    return losses_of(recipe, config, weights, *backend, samples, pool, line);
  };
  ProgressText progress(tokens ? tokens->num_tokens() : 0);
  job.on_progress = [&](const QuantizeProgress& p) { line.show(progress.at(p)); };
  const QuantizeReport report = job.run(pool);
  print_report(report, flags.quantize.target.string(), seconds_since(start));
  return 0;
}

}  // namespace nibble
