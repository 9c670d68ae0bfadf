// nibble eval: how well a model predicts text and solves problems, alone or beside another.
#include <chrono>
#include <cstdio>

#include "apps/eval_report.h"
#include "apps/eval_samples.h"
#include "apps/eval_tasks.h"
#include "apps/eval_text.h"
#include "apps/model_files.h"
#include "apps/runtime.h"
#include "apps/subcommands.h"
#include "apps/terminal.h"
#include "base/error.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kCacheBytes = int64_t(2) << 30;

// The models of one evaluation, with one vocabulary.
struct Models {
  std::unique_ptr<Tokenizer> tokenizer{};
  std::unique_ptr<Runtime> model{}, base{}, other{};
};

std::unique_ptr<Runtime> load(const EvalOptions& options, const std::string& name,
                              const std::string& kv_cache_dtype) {
  ModelOptions o = options.model;
  o.kv_cache_dtype = kv_cache_dtype;
  if (name != options.model.model) o.model = name, o.quantization = "";
  o.full_logits = true;
  // Room for texts and for other models beside the engine's cache.
  if (o.kv_cache_memory_bytes == 0) o.kv_cache_memory_bytes = kCacheBytes;
  return std::make_unique<Runtime>(find_model(o.model), o);
}

// The first model's tokenizer; quantizers may leave it out.
std::unique_ptr<Tokenizer> find_tokenizer(const EvalOptions& options) {
  const fs::path first = find_model(options.model.model);
  for (const std::string& name : {options.base, options.compare}) {
    if (name.empty() || fs::exists(first / "tokenizer.json")) continue;
    const fs::path folder = find_model(name);
    if (fs::exists(folder / "tokenizer.json")) return Tokenizer::load(folder);
  }
  return Tokenizer::load(first);
}

void check_vocabulary(const Runtime& model, const Runtime& other, const std::string& flag) {
  if (model.config.vocab == other.config.vocab) return;
  throw Error(flag + ": has vocab_size " + std::to_string(other.config.vocab) + ", the model " +
              std::to_string(model.config.vocab) +
              "; models can be compared that have the same tokens");
}

Models load_models(const EvalOptions& o) {
  Models models{.tokenizer = find_tokenizer(o)};
  models.model = load(o, o.model.model, o.model.kv_cache_dtype);
  if (models.tokenizer->vocab_size() > models.model->config.vocab) {
    throw Error("tokenizer.json has " + std::to_string(models.tokenizer->vocab_size()) +
                " tokens, but config.json says vocab_size " +
                std::to_string(models.model->config.vocab));
  }
  if (!o.base.empty()) {
    models.base = load(o, o.base, "auto");
    check_vocabulary(*models.model, *models.base, "--base " + o.base);
  }
  if (!o.compare.empty()) {
    models.other = load(o, o.compare, o.model.kv_cache_dtype);
    check_vocabulary(*models.model, *models.other, "--compare " + o.compare);
  }
  return models;
}

TextScores score(const Models& models, const std::string& name,
                 const std::vector<TextSample>& samples) {
  ProgressLine progress;
  return score_text(*models.model, models.base.get(), models.other.get(), samples,
                    [&](double share) { progress.show(name + " " + ProgressLine::bar(share)); });
}

}  // namespace

int eval(const EvalOptions& options) {
  const bool reads_text = !options.perplexity.empty() || !options.chat.empty();
  if (!options.base.empty() && !reads_text) {
    throw Error("--base " + options.base +
                ": compares predictions of a text; name one by --chat "
                "or --perplexity");
  }
  std::vector<Problem> problems;
  if (!options.tasks.empty() || !reads_text) {
    const std::string tasks =
        options.tasks.empty() ? (find_model("") / "eval/tasks.jsonl").string() : options.tasks;
    problems = load_problems(tasks, options.problems, options.families);
  }
  const Models models = load_models(options);
  const int vocab = models.model->config.vocab;
  std::vector<TextSample> chat, prose;
  if (!options.chat.empty()) chat = load_chat_samples(options.chat, vocab);
  if (!options.perplexity.empty()) {
    prose = load_prose_samples(options.perplexity, *models.tokenizer);
  }

  EvalResults results{.model = model_name(options.model.model),
                      .base = options.base,
                      .other = options.compare,
                      .dtype = options.model.dtype,
                      .problems = std::move(problems)};
  const auto start = std::chrono::steady_clock::now();
  if (!chat.empty()) results.chat = score(models, "chat", chat);
  if (!prose.empty()) results.prose = score(models, "prose", prose);
  int64_t tokens = 0;
  if (!results.problems.empty()) {
    const auto answers = [&](Runtime& runtime, const std::string& name) {
      const auto right = answer_all(*runtime.engine, *models.tokenizer, results.problems, name);
      tokens += runtime.engine->metrics().generation_tokens;
      return right;
    };
    results.model_right = answers(*models.model, results.model);
    if (models.other) results.other_right = answers(*models.other, results.other);
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  print_results(results);
  if (!results.problems.empty()) {
    std::printf("\n%zu problems, %lld tokens generated\n", results.problems.size(),
                static_cast<long long>(tokens));
  }
  std::printf("%.1f s\n", elapsed.count());
  if (!options.json.empty()) write_json(results, options.json);
  return 0;
}

}  // namespace nibble
