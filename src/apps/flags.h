// The command line: one CLI::App a subcommand, bound to the option structs.
#pragma once

#include <CLI/CLI.hpp>

#include "apps/options.h"

namespace nibble {

void add_serve_flags(CLI::App& app, ServeOptions& options);
void add_chat_flags(CLI::App& app, ChatOptions& options);
void add_eval_flags(CLI::App& app, EvalOptions& options);
void add_plan_flags(CLI::App& app, PlanOptions& o);
void add_bench_flags(CLI::App& app, BenchOptions& options);
void add_quantize_flags(CLI::App& app, QuantizeFlags& flags);
void add_prune_flags(CLI::App& app, PruneFlags& flags);

}  // namespace nibble
