#include "apps/eval_report.h"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "apps/terminal.h"
#include "base/error.h"

namespace nibble {
namespace {

using nlohmann::ordered_json;
using Rows = std::vector<std::vector<std::string>>;

std::string with_error(double value, double error, int decimals) {
  return format_number(value, decimals) + " +- " + format_number(error, decimals);
}

std::string average(const Average& a, int decimals, double unit = 1) {
  return with_error(a.mean() * unit, a.standard_error() * unit, decimals);
}

// A share of right answers, or a difference of two.
struct FamilyScore {
  int right = 0, total = 0;
  double percent() const { return 100.0 * right / total; }
};

std::map<std::string, FamilyScore> score(const std::vector<Problem>& problems,
                                         const std::vector<bool>& right) {
  std::map<std::string, FamilyScore> scores;
  for (size_t i = 0; i < problems.size(); ++i) {
    ++scores[problems[i].family].total;
    scores[problems[i].family].right += right[i];
  }
  return scores;
}

double mean_percent(const std::map<std::string, FamilyScore>& scores) {
  double sum = 0;
  for (const auto& [family, s] : scores) sum += s.percent();
  return sum / double(scores.size());
}

// Other minus model, problem by problem, in points.
struct TaskDifferences {
  std::map<std::string, Average> families{};
  double mean = 0, error = 0;  // of the families' mean
};

TaskDifferences task_differences(const EvalResults& r) {
  TaskDifferences d;
  for (size_t i = 0; i < r.problems.size(); ++i) {
    d.families[r.problems[i].family].add(100.0 * (int(r.other_right[i]) - int(r.model_right[i])));
  }
  double variance = 0;
  for (const auto& [family, a] : d.families) {
    d.mean += a.mean();
    variance += a.standard_error() * a.standard_error();
  }
  d.mean /= double(d.families.size());
  d.error = std::sqrt(variance) / double(d.families.size());
  return d;
}

void print_text(const EvalResults& r, const char* what, const TextScores& s) {
  const bool two = s.other.has_value();
  Rows rows = {
      {std::string(what) + ", " + std::to_string(s.model.nll.count()) + " tokens", r.model}};
  if (two) rows[0].insert(rows[0].end(), {r.other, "difference"});
  const auto row = [&](const std::string& name,
                       const std::function<std::string(const TextScore&)>& cell,
                       const std::string& difference) {
    rows.push_back({name, cell(s.model)});
    if (two) rows.back().insert(rows.back().end(), {cell(*s.other), difference});
  };
  row(
      "perplexity", [](const TextScore& t) { return format_number(std::exp(t.nll.mean()), 4); },
      "");
  row(
      "-ln p of a token", [](const TextScore& t) { return average(t.nll, 5); },
      average(s.difference.nll, 5));
  if (s.base) {
    row(
        "KL from the base", [](const TextScore& t) { return average(t.kl, 5); },
        average(s.difference.kl, 5));
    row(
        "top-1 as the base, %", [](const TextScore& t) { return average(t.same, 2, 100); },
        average(s.difference.same, 2, 100));
  }
  std::printf("%s", table(rows).c_str());
  if (s.base) {
    std::printf("base %s: perplexity %.4f\n", r.base.c_str(), std::exp(s.base->nll.mean()));
  }
  std::printf("\n");
}

void print_tasks(const EvalResults& r) {
  const auto scores = score(r.problems, r.model_right);
  if (r.other.empty()) {
    Rows rows = {{"family", "right", "of", "%"}};
    for (const auto& [family, s] : scores) {
      rows.push_back({family, std::to_string(s.right), std::to_string(s.total),
                      format_number(s.percent(), 1)});
    }
    rows.push_back({"mean of families", "", "", format_number(mean_percent(scores), 2)});
    std::printf("%s", table(rows).c_str());
    return;
  }
  const auto others = score(r.problems, r.other_right);
  const TaskDifferences differences = task_differences(r);
  Rows rows = {{"family, % right", "of", r.model, r.other, "difference"}};
  for (const auto& [family, s] : scores) {
    rows.push_back({family, std::to_string(s.total), format_number(s.percent(), 1),
                    format_number(others.at(family).percent(), 1),
                    average(differences.families.at(family), 1)});
  }
  rows.push_back({"mean of families", "", format_number(mean_percent(scores), 2),
                  format_number(mean_percent(others), 2),
                  with_error(differences.mean, differences.error, 2)});
  std::printf("%s", table(rows).c_str());
}

ordered_json text_json(const TextScore& score, const std::optional<TextScore>& base) {
  ordered_json json = {{"tokens", score.nll.count()},
                       {"nll", score.nll.mean()},
                       {"nll_se", score.nll.standard_error()},
                       {"ppl", std::exp(score.nll.mean())}};
  if (!base) return json;
  json["base_ppl"] = std::exp(base->nll.mean());
  json["kl"] = score.kl.mean();
  json["kl_se"] = score.kl.standard_error();
  json["top1"] = score.same.mean();
  json["top1_se"] = score.same.standard_error();
  return json;
}

ordered_json difference_json(const TextScores& s) {
  ordered_json json;
  const auto add = [&](const std::string& name, const Average& a) {
    json[name] = a.mean();
    json[name + "_se"] = a.standard_error();
  };
  add("nll", s.difference.nll);
  if (s.base) add("kl", s.difference.kl), add("top1", s.difference.same);
  return json;
}

void add_tasks(const std::vector<Problem>& problems, const std::vector<bool>& right,
               ordered_json& json) {
  for (const auto& [family, s] : score(problems, right)) {
    json["families"][family] = {{"right", s.right}, {"of", s.total}};
  }
  json["mean_percent"] = mean_percent(score(problems, right));
  for (size_t i = 0; i < problems.size(); ++i) json["problems"][problems[i].id] = int(right[i]);
}

}  // namespace

void print_results(const EvalResults& results) {
  if (results.chat) print_text(results, "chat", *results.chat);
  if (results.prose) print_text(results, "prose", *results.prose);
  if (!results.problems.empty()) print_tasks(results);
}

void write_json(const EvalResults& r, const std::string& path) {
  ordered_json json = {{"model", r.model}, {"dtype", r.dtype}};
  if (!r.base.empty()) json["base"] = r.base;
  if (!r.other.empty()) json["compare"]["model"] = r.other;
  for (const auto& [name, text] : {std::pair("chat", &r.chat), std::pair("perplexity", &r.prose)}) {
    if (!*text) continue;
    const TextScores& s = **text;
    json[name] = text_json(s.model, s.base);
    if (!s.other) continue;
    json["compare"][name] = text_json(*s.other, s.base);
    json["difference"][name] = difference_json(s);
  }
  if (!r.problems.empty()) {
    add_tasks(r.problems, r.model_right, json);
    if (!r.other.empty()) {
      add_tasks(r.problems, r.other_right, json["compare"]);
      const TaskDifferences d = task_differences(r);
      json["difference"]["mean_percent"] = d.mean;
      json["difference"]["mean_percent_se"] = d.error;
    }
  }
  std::ofstream file(path);
  file << json.dump(1) << "\n";
  if (!file.flush()) throw Error("--json " + path + ": cannot be written");
}

}  // namespace nibble
