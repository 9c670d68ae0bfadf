// nibble bench: speed of the model at context frontiers and of the engine under load, beside what
// the machine itself can do in the same run. Prompts are random ids, answers go on past stop ids,
// so that only the work counts.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <random>

#include "apps/bench_model.h"
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
};

const Row kRows[] = {
    {.name = "stream of 128 from empty", .streams = 1, .prompt = 1, .output = 128},
    {.name = "streams of 128 + 64, 16 at once, in all",
     .streams = 16,
     .prompt = 128,
     .output = 64,
     .reads_prompt = true},
    {.name = "prompts of 128, 16 at once",
     .streams = 16,
     .prompt = 128,
     .output = 1,
     .reads_prompt = true},
    {.name = "prompt of 512", .streams = 1, .prompt = 512, .output = 1, .reads_prompt = true},
    {.name = "prompt of 2048", .streams = 1, .prompt = 2048, .output = 1, .reads_prompt = true},
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

double tokens_per_second(const Row& row, double seconds) {
  // The first output token comes with the prompt.
  const int tokens = row.reads_prompt ? row.prompt + row.output - 1 : row.output;
  return double(row.streams) * tokens / seconds;
}

std::string percent(double share) {
  return share == 0 ? "-" : format_number(100 * share, 0) + " %";
}

// What is printed, and the same as lines of the CSV file.
class Results {
 public:
  void start_table(std::vector<std::string> header) { rows_ = {std::move(header)}; }
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  void print_table() const {
    if (rows_.size() > 1) std::printf("%s\n", table(rows_).c_str());
    std::fflush(stdout);
  }

  void add_line(const std::string& name, int context, int batch, double tokens_per_second,
                double bytes_per_second, double share) {
    csv_ += '"' + name + "\"," + std::to_string(context) + ',' + std::to_string(batch) + ',' +
            format_number(tokens_per_second, 2) + ',' + format_number(bytes_per_second, 0) + ',' +
            format_number(share, 4) + "\n";
  }
  void write_csv(const std::string& path) const {
    std::ofstream file(path);
    file << "name,context,batch,tokens_per_second,bytes_per_second,share_of_limit\n" << csv_;
    if (!file.flush()) throw Error("--csv " + path + ": cannot be written");
  }

 private:
  std::vector<std::vector<std::string>> rows_;
  std::string csv_;
};

std::vector<int> token_counts(const std::string& flag, const std::vector<std::string>& texts) {
  std::vector<int> counts;
  for (const std::string& text : texts) {
    counts.push_back(text == "0" ? 0 : parse_token_count(flag, text));
  }
  return counts;
}

void bench_decode(ModelBench& model, const BenchOptions& options, Results& results) {
  results.start_table(
      {"decode", "batch", "tokens/s", "GB/s", "of read bandwidth", "experts a layer"});
  ProgressLine progress;
  for (const int context : token_counts("--contexts", options.contexts)) {
    for (const int batch : options.batches) {
      const std::string name = "context " + std::to_string(context);
      progress.show("decode, " + name + ", batch " + std::to_string(batch) + " ...");
      const auto speed = model.decode({context, batch}, options.repetitions);
      if (!speed) continue;
      results.add({name, std::to_string(batch), format_number(speed->tokens_per_second, 1),
                   format_number(speed->bytes_per_second / 1e9, 1), percent(speed->bandwidth_share),
                   format_number(speed->experts_of_a_layer, 1)});
      results.add_line("decode", context, batch, speed->tokens_per_second, speed->bytes_per_second,
                       speed->bandwidth_share);
    }
  }
  progress.show("");
  results.print_table();
}

void bench_prefill(ModelBench& model, const BenchOptions& options, Results& results) {
  results.start_table({"prefill", "tokens/s", "TFLOP/s", "of multiply-add peak"});
  ProgressLine progress;
  for (const int prompt : token_counts("--prompts", options.prompts)) {
    const std::string name = "prompt of " + std::to_string(prompt);
    progress.show("prefill, " + name + " ...");
    const auto speed = prompt > 0 ? model.prefill(prompt, options.repetitions) : std::nullopt;
    if (!speed) continue;
    results.add({name, format_number(speed->tokens_per_second, 0),
                 format_number(speed->flops_per_second / 1e12, 3), percent(speed->compute_share)});
    results.add_line("prefill", prompt, 1, speed->tokens_per_second, 0, speed->compute_share);
  }
  progress.show("");
  results.print_table();
}

void bench_engine(Runtime& runtime, const BenchOptions& options, Results& results) {
  results.start_table({"through the engine", "tokens/s"});
  std::mt19937 random(1);
  ProgressLine progress;
  for (const Row& row : kRows) {
    if (row.prompt + row.output > runtime.engine->options().max_model_len) continue;
    progress.show(row.name + " ...");
    std::vector<double> seconds;
    for (int i = 0; i < options.repetitions + 1; ++i) {  // the first warms up
      const double time = run_row(*runtime.engine, row, runtime.config.vocab, random);
      if (i > 0) seconds.push_back(time);
    }
    std::sort(seconds.begin(), seconds.end());
    const double speed = tokens_per_second(row, seconds[seconds.size() / 2]);
    results.add({row.name, format_number(speed, 1)});
    results.add_line(row.name, row.prompt, row.streams, speed, 0, 0);
  }
  progress.show("");
  results.print_table();
}

}  // namespace

int bench(const BenchOptions& options) {
  ModelOptions options_of_model = options.model;
  for (const int batch : options.batches) {
    options_of_model.max_num_seqs = std::max(options_of_model.max_num_seqs, batch);
  }
  Runtime runtime(find_model(options.model.model), options_of_model);
  const GlmCost cost = cost_of(runtime.config, runtime.weights);
  std::printf("%s on %s\n", model_name(options.model.model).c_str(),
              runtime.backend->description().c_str());
  const MachineLimits limits = runtime.backend->measure_limits();
  std::printf(
      "read bandwidth %.1f GB/s, multiply-add peak %.2f TFLOP/s; a token reads %.1f MB of "
      "weights\n\n",
      limits.read_bytes_per_second / 1e9, limits.flops_per_second / 1e12,
      cost.bytes_per_token / 1e6);

  Results results;
  {
    ModelBench model(runtime, cost, limits);
    bench_decode(model, options, results);
    bench_prefill(model, options, results);
  }
  if (!options.skip_engine) bench_engine(runtime, options, results);
  if (!options.csv.empty()) results.write_csv(options.csv);
  return 0;
}

}  // namespace nibble
