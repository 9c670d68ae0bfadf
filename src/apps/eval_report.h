// What an evaluation found, as tables for people and as JSON.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "apps/eval_tasks.h"
#include "apps/eval_text.h"

namespace nibble {

struct EvalResults {
  std::string model{}, base{}, other{};  // as named on the command line; empty: none
  std::string dtype{};
  std::optional<TextScores> chat{}, prose{};
  std::vector<Problem> problems{};
  std::vector<bool> model_right{}, other_right{};  // of problems
};

// Side by side, with differences and their standard errors where there are two models.
void print_results(const EvalResults& results);

// Throws Error when the file cannot be written. Keys of a text: tokens, nll, nll_se, ppl and with a
// base base_ppl, kl, kl_se, top1, top1_se; of tasks: families, mean_percent, problems (1: right).
// The second model's are under "compare", its differences under "difference".
void write_json(const EvalResults& results, const std::string& path);

}  // namespace nibble
