// nibble: the table of subcommands.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "apps/flags.h"
#include "apps/subcommands.h"
#include "apps/vllm_flags.h"
#include "base/error.h"
#include "base/log.h"

namespace nibble {
namespace {

struct Options {
  ServeOptions serve{};
  ChatOptions chat{};
  EvalOptions eval{};
  PlanOptions plan{};
  BenchOptions bench{};
  QuantizeFlags quantize{};
  PruneFlags prune{};
};

// A flag given twice counts as given last, as in vLLM: command lines can be added to.
void let_the_last_win(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_positional() || option->get_items_expected_max() > 1) continue;
    option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  }
  for (CLI::App* part : app.get_subcommands([](CLI::App*) { return true; })) {
    let_the_last_win(*part);
  }
}

void add_subcommands(CLI::App& app, Options& options) {
  add_serve_flags(*app.add_subcommand("serve", "serve a model over HTTP, as OpenAI's API"),
                  options.serve);
  add_chat_flags(*app.add_subcommand("chat", "talk to a model in the terminal"), options.chat);
  add_eval_flags(*app.add_subcommand("eval", "score a model on problems with known answers"),
                 options.eval);
  add_bench_flags(*app.add_subcommand("bench", "measure speed beside the machine's own limits"),
                  options.bench);
  add_plan_flags(
      *app.add_subcommand("plan", "say what fits on a card or in memory, before loading"),
      options.plan);
  add_quantize_flags(*app.add_subcommand("quantize", "make an NVFP4 checkpoint of a BF16 one"),
                     options.quantize);
  add_prune_flags(*app.add_subcommand("prune", "leave out the experts that matter least"),
                  options.prune);
  app.add_subcommand("version", "print version and device");
  let_the_last_win(app);
}

int run(const CLI::App& app, Options& options) {
  if (app.got_subcommand("serve")) {
    if (const char* key = std::getenv("VLLM_API_KEY"); key != nullptr && *key != '\0') {
      options.serve.api_keys.emplace_back(key);
    }
    return serve(options.serve);
  }
  if (app.got_subcommand("chat")) return chat(options.chat);
  if (app.got_subcommand("eval")) return eval(options.eval);
  if (app.got_subcommand("bench")) return bench(options.bench);
  if (app.got_subcommand("plan")) return plan(options.plan);
  if (app.got_subcommand("quantize")) return quantize(options.quantize);
  if (app.got_subcommand("prune")) return prune(options.prune);
  return version();
}

int main_with_errors(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (!arguments.empty() && arguments[0] == "--version") arguments[0] = "version";
  if (!arguments.empty() && arguments[0] == "serve") {
    TranslatedArguments translated = translate_vllm_flags({arguments.begin() + 1, arguments.end()});
    for (const std::string& warning : translated.warnings) log_warning(warning);
    arguments.resize(1);
    arguments.insert(arguments.end(), translated.arguments.begin(), translated.arguments.end());
  }

  Options options;
  CLI::App app("nibble: GLM-4.7-Flash, quantized and served", "nibble");
  app.require_subcommand(1);
  add_subcommands(app, options);
  app.footer("Try:  nibble chat        nibble serve        nibble serve --help");
  if (arguments.empty()) arguments.push_back("--help");
  const auto is_first = [&](const CLI::App* part) { return part->check_name(arguments[0]); };
  if (!arguments[0].starts_with("-") && app.get_subcommands(is_first).empty()) {
    throw Error("there is no command " + arguments[0] + " (see nibble --help)");
  }
  try {
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
    app.parse(std::move(reversed));
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);
    const auto used = app.get_subcommands();
    throw Error(std::string(e.what()) + " (see nibble " +
                (used.empty() ? "" : used[0]->get_name() + " ") + "--help)");
  }
  return run(app, options);
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  try {
    return nibble::main_with_errors(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "nibble: %s\n", nibble::escape_control(e.what()).c_str());
    return 1;
  }
}
