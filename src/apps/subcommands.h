// The subcommands, one file each. They return the exit status; Error is caught in main.
#pragma once

#include "apps/options.h"

namespace nibble {

int serve(const ServeOptions& options);
int chat(const ChatOptions& options);
int eval(const EvalOptions& options);
int bench(const BenchOptions& options);
int quantize(const QuantizeFlags& flags);
int prune(const PruneFlags& flags);
int plan(const PlanOptions& options);
int version();

}  // namespace nibble
