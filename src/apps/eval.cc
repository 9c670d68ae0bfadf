// nibble eval: problems with known answers, answered greedily through the engine, all batched.
//
// A line of the tasks file: {"id", "family", "prompt", "answer", "score": "exact" | "json"}. The
// prompt is encoded as it stands; the reply's text after the last </think>, stripped, must equal
// the answer, or as JSON be an equal value.
#include <chrono>
#include <cstdio>
#include <fstream>
#include <map>
#include <set>

#include "apps/model_files.h"
#include "apps/session.h"
#include "apps/subcommands.h"
#include "apps/terminal.h"
#include "base/error.h"

namespace nibble {
namespace {

constexpr int kMaxReplyTokens = 260;

struct Problem {
  std::string id, family, prompt, answer;
  bool compare_json = false;
  std::shared_ptr<TokenStream> stream{};
  std::vector<int32_t> reply{};
  bool right = false;
};

// The problem's number within its family: "family/number/turn".
int problem_number(const std::string& id) {
  const size_t slash = id.find('/');
  return slash == std::string::npos ? 0 : std::atoi(id.c_str() + slash + 1);
}

Problem parse_problem(const std::string& line, const std::string& place) {
  try {
    const auto json = nlohmann::json::parse(line);
    return {.id = json.at("id").get<std::string>(),
            .family = json.at("family").get<std::string>(),
            .prompt = json.at("prompt").get<std::string>(),
            .answer = json.at("answer").is_string() ? json.at("answer").get<std::string>()
                                                    : json.at("answer").dump(),
            .compare_json = json.at("score").get<std::string>() == "json"};
  } catch (const nlohmann::json::exception& e) {
    throw Error(place + ": not a problem with id, family, prompt, answer and score: " + e.what());
  }
}

std::vector<Problem> load_problems(const EvalOptions& options, const std::string& path) {
  std::ifstream file(path);
  if (!file) throw Error(path + ": cannot be read");
  const std::set<std::string> wanted(options.families.begin(), options.families.end());
  std::set<std::string> seen;
  std::vector<Problem> problems;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.empty()) continue;
    Problem problem = parse_problem(line, path + ":" + std::to_string(number));
    seen.insert(problem.family);
    if (!wanted.empty() && !wanted.contains(problem.family)) continue;
    if (options.problems > 0 && problem_number(problem.id) >= options.problems) continue;
    problems.push_back(std::move(problem));
  }
  for (const std::string& family : wanted) {
    if (!seen.contains(family)) throw Error("--families " + family + ": not in " + path);
  }
  if (problems.empty()) throw Error(path + ": has no problems");
  return problems;
}

std::string stripped(const std::string& text) {
  constexpr const char* kSpace = " \t\n\r\f\v";
  const size_t first = text.find_first_not_of(kSpace);
  return first == std::string::npos ? ""
                                    : text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

bool is_right(const Problem& problem, const std::string& reply) {
  const std::string tag = "</think>";
  const size_t end = reply.rfind(tag);
  const std::string said =
      stripped(end == std::string::npos ? reply : reply.substr(end + tag.size()));
  if (!problem.compare_json) return said == problem.answer;
  const auto got = nlohmann::json::parse(said, nullptr, /*allow_exceptions=*/false);
  const auto want = nlohmann::json::parse(problem.answer, nullptr, false);
  return !got.is_discarded() && got == want;
}

struct Score {
  int right = 0;
  int total = 0;
  double percent() const { return 100.0 * right / total; }
};

std::map<std::string, Score> score(const std::vector<Problem>& problems) {
  std::map<std::string, Score> scores;
  for (const Problem& problem : problems) {
    ++scores[problem.family].total;
    scores[problem.family].right += problem.right;
  }
  return scores;
}

double mean_percent(const std::map<std::string, Score>& scores) {
  double sum = 0;
  for (const auto& [family, s] : scores) sum += s.percent();
  return sum / double(scores.size());
}

// Keeps the engine's queue filled; returns when all problems are answered.
void answer_all(Session& session, std::vector<Problem>& problems) {
  ProgressLine progress;
  const size_t window = 4 * size_t(session.engine().options().max_num_seqs);
  const auto start = std::chrono::steady_clock::now();
  size_t submitted = 0, done = 0, right = 0;
  for (size_t first = 0; done < problems.size();) {
    for (; submitted < problems.size() && submitted < done + window; ++submitted) {
      Problem& problem = problems[submitted];
      const auto ids = session.tokenizer->encode(problem.prompt);
      const int room = session.engine().options().max_model_len - int(ids.size());
      if (room <= 0) throw Error(problem.id + ": is longer than --max-model-len");
      problem.stream = session.engine().submit(
          {.prompt = ids,
           .sampling = {.temperature = 0, .max_tokens = std::min(kMaxReplyTokens, room)}});
    }
    session.engine().step();
    for (size_t i = first; i < submitted; ++i) {
      Problem& problem = problems[i];
      if (problem.stream == nullptr) continue;
      const StreamUpdate update = problem.stream->poll();
      for (const Token& token : update.tokens) problem.reply.push_back(token.id);
      if (!update.finish) continue;
      problem.right = is_right(problem, session.tokenizer->decode(problem.reply, false));
      right += problem.right;
      problem.stream = nullptr;
      ++done;
    }
    while (first < submitted && problems[first].stream == nullptr) ++first;
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    progress.show(ProgressLine::bar(double(done) / double(problems.size())) + "  " +
                  std::to_string(done) + " of " + std::to_string(problems.size()) + " problems, " +
                  std::to_string(right) + " right, " + format_number(elapsed.count(), 0) + " s");
  }
}

void print_scores(const std::vector<Problem>& problems, double seconds, int64_t tokens) {
  const auto scores = score(problems);
  std::vector<std::vector<std::string>> rows = {{"family", "right", "of", "%"}};
  for (const auto& [family, s] : scores) {
    rows.push_back(
        {family, std::to_string(s.right), std::to_string(s.total), format_number(s.percent(), 1)});
  }
  rows.push_back({"mean of families", "", "", format_number(mean_percent(scores), 2)});
  std::printf("%s\n%zu problems, %lld tokens generated in %.1f s (%.0f a second)\n",
              table(rows).c_str(), problems.size(), static_cast<long long>(tokens), seconds,
              double(tokens) / seconds);
}

void write_json(const std::string& path, const std::vector<Problem>& problems) {
  nlohmann::ordered_json json;
  for (const auto& [family, s] : score(problems)) {
    json["families"][family] = {{"right", s.right}, {"of", s.total}};
  }
  json["mean_percent"] = mean_percent(score(problems));
  for (const Problem& problem : problems) json["problems"][problem.id] = int(problem.right);
  std::ofstream file(path);
  file << json.dump(1) << "\n";
  if (!file.flush()) throw Error("--json " + path + ": cannot be written");
}

}  // namespace

int eval(const EvalOptions& options) {
  const std::string path =
      options.tasks.empty() ? (find_model("") / "eval/tasks.jsonl").string() : options.tasks;
  std::vector<Problem> problems = load_problems(options, path);
  Session session(options.model);
  const auto start = std::chrono::steady_clock::now();
  answer_all(session, problems);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  print_scores(problems, elapsed.count(), session.engine().metrics().generation_tokens);
  if (!options.json.empty()) write_json(options.json, problems);
  return 0;
}

}  // namespace nibble
