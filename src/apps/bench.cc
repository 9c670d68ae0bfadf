// nibble bench: speed of the engine, beside what the machine itself can do in the same run. Prompts
// are random ids, answers go on past stop ids, so that only the work counts.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <random>

#include "apps/model_files.h"
#include "apps/runtime.h"
#include "apps/subcommands.h"
#include "apps/terminal.h"
#include "base/error.h"
#include "model/glm_cost.h"

namespace nibble {
namespace {

struct Row {
  std::string name;
  int streams = 0;
  int prompt = 0;             // tokens of each stream
  int output = 0;             // tokens of each stream
  bool reads_prompt = false;  // counts the tokens of the prompts, too
  bool one_by_one = false;    // each step reads the weights for one token: bandwidth is the limit
};

const Row kRows[] = {
    {.name = "decode, 1 stream of 128",
     .streams = 1,
     .prompt = 1,
     .output = 128,
     .one_by_one = true},
    {.name = "16 streams of 128 + 64, in all",
     .streams = 16,
     .prompt = 128,
     .output = 64,
     .reads_prompt = true},
    {.name = "prefill, 16 x 128", .streams = 16, .prompt = 128, .output = 1, .reads_prompt = true},
    {.name = "prefill, 1 x 512", .streams = 1, .prompt = 512, .output = 1, .reads_prompt = true},
    {.name = "prefill, 1 x 2048", .streams = 1, .prompt = 2048, .output = 1, .reads_prompt = true},
};

// Seconds from the first step to the last token.
double run_row(Engine& engine, const Row& row, int vocab, std::mt19937& random) {
  std::vector<std::shared_ptr<TokenStream>> streams;
  std::uniform_int_distribution<int32_t> id(0, vocab - 1);
  for (int s = 0; s < row.streams; ++s) {
    std::vector<int32_t> prompt(static_cast<size_t>(row.prompt));
    std::generate(prompt.begin(), prompt.end(), [&] { return id(random); });
    streams.push_back(
        engine.submit({.prompt = prompt,
                       .sampling = {.temperature = 0, .max_tokens = row.output, .ignore_eos = true},
                       .use_prefix_cache = false}));
  }
  const auto start = std::chrono::steady_clock::now();
  while (engine.step()) {
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Result {
  Row row;
  double tokens_per_second = 0;
  double bandwidth_share = 0;  // of the read bandwidth, weights only; 0: does not apply
  double compute_share = 0;    // of the multiply-add peak
};

// Weights once a step and the products of every row: what the row could not do without.
Result result_of(const Row& row, double seconds, const GlmCost& cost, const MachineLimits& limits) {
  const double rows = double(row.streams) * (row.prompt + row.output - 1);
  const double heads = double(row.streams) * row.output;
  double cached = 0;
  for (int position = 0; position < row.prompt + row.output - 1; ++position) cached += position + 1;
  const double flops = rows * cost.flops_per_token + heads * cost.head_flops +
                       row.streams * cached * cost.flops_per_cached_token;
  Result result{.row = row};
  // The first output token comes with the prompt.
  const double tokens =
      double(row.streams) * (row.reads_prompt ? row.prompt + row.output - 1 : row.output);
  result.tokens_per_second = tokens / seconds;
  if (limits.flops_per_second > 0) {
    result.compute_share = flops / seconds / limits.flops_per_second;
  }
  if (row.one_by_one && limits.read_bytes_per_second > 0) {
    result.bandwidth_share =
        cost.bytes_per_token * row.output / seconds / limits.read_bytes_per_second;
  }
  return result;
}

std::string percent(double share) {
  return share == 0 ? "-" : format_number(100 * share, 0) + " %";
}

void print_results(const std::vector<Result>& results) {
  std::vector<std::vector<std::string>> rows = {
      {"", "tokens/s", "of read bandwidth", "of multiply-add peak"}};
  for (const Result& r : results) {
    rows.push_back({r.row.name, format_number(r.tokens_per_second, 0), percent(r.bandwidth_share),
                    percent(r.compute_share)});
  }
  std::printf("%s", table(rows).c_str());
}

void write_csv(const std::string& path, const std::vector<Result>& results) {
  std::ofstream file(path);
  file << "name,streams,prompt,output,tokens_per_second,bandwidth_share,compute_share\n";
  for (const Result& r : results) {
    file << '"' << r.row.name << "\"," << r.row.streams << ',' << r.row.prompt << ','
         << r.row.output << ',' << r.tokens_per_second << ',' << r.bandwidth_share << ','
         << r.compute_share << "\n";
  }
  if (!file.flush()) throw Error("--csv " + path + ": cannot be written");
}

}  // namespace

int bench(const BenchOptions& options) {
  ModelOptions model = options.model;
  model.max_num_seqs = std::max(model.max_num_seqs, 16);
  Runtime runtime(find_model(model.model), model);
  const GlmCost cost = cost_of(runtime.config, runtime.weights);
  std::printf("%s on %s\n", model_name(model.model).c_str(),
              runtime.backend->description().c_str());
  const MachineLimits limits = runtime.backend->measure_limits();
  std::printf(
      "read bandwidth %.1f GB/s, multiply-add peak %.0f GFLOP/s; a token reads %.1f MB of "
      "weights\n\n",
      limits.read_bytes_per_second / 1e9, limits.flops_per_second / 1e9,
      cost.bytes_per_token / 1e6);

  std::mt19937 random(1);
  std::vector<Result> results;
  ProgressLine progress;
  for (const Row& row : kRows) {
    if (row.prompt + row.output > runtime.engine->options().max_model_len) continue;
    progress.show(row.name + " ...");
    double best = run_row(*runtime.engine, row, runtime.config.vocab, random);  // warms up, too
    for (int i = 1; i < options.repetitions + 1; ++i) {
      best = std::min(best, run_row(*runtime.engine, row, runtime.config.vocab, random));
    }
    results.push_back(result_of(row, best, cost, limits));
  }
  progress.show("");
  print_results(results);
  if (!options.csv.empty()) write_csv(options.csv, results);
  return 0;
}

}  // namespace nibble
