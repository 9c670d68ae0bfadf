#include "apps/eval_tasks.h"

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "apps/terminal.h"
#include "base/error.h"

namespace nibble {
namespace {

constexpr int kMaxReplyTokens = 260;

// A problem that is being answered.
struct Attempt {
  std::shared_ptr<TokenStream> stream{};
  std::vector<int32_t> reply{};
};

// The problem's number within its family: "family/number/turn".
int problem_number(const std::string& id) {
  const size_t slash = id.find('/');
  return slash == std::string::npos ? 0 : std::atoi(id.c_str() + slash + 1);
}

Problem parse_problem(const std::string& line, const std::string& place) {
  try {
    const auto json = nlohmann::json::parse(line);
    const std::string score = json.at("score").get<std::string>();
    if (score != "exact" && score != "json") {
      throw Error(place + ": score is \"" + score + "\"; it must be exact or json");
    }
    return {.id = json.at("id").get<std::string>(),
            .family = json.at("family").get<std::string>(),
            .prompt = json.at("prompt").get<std::string>(),
            .answer = json.at("answer").is_string() ? json.at("answer").get<std::string>()
                                                    : json.at("answer").dump(),
            .compare_json = score == "json"};
  } catch (const nlohmann::json::exception& e) {
    throw Error(place + ": not a problem with id, family, prompt, answer and score: " + e.what());
  }
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

}  // namespace

std::vector<Problem> load_problems(const std::string& path, int most,
                                   const std::vector<std::string>& families) {
  std::ifstream file(path);
  if (!file) throw Error(path + ": cannot be read");
  const std::set<std::string> wanted(families.begin(), families.end());
  std::set<std::string> seen;
  std::vector<Problem> problems;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.empty()) continue;
    Problem problem = parse_problem(line, path + ":" + std::to_string(number));
    seen.insert(problem.family);
    if (!wanted.empty() && !wanted.contains(problem.family)) continue;
    if (most > 0 && problem_number(problem.id) >= most) continue;
    problems.push_back(std::move(problem));
  }
  for (const std::string& family : wanted) {
    if (!seen.contains(family)) throw Error("--families " + family + ": not in " + path);
  }
  if (problems.empty()) throw Error(path + ": has no problems");
  return problems;
}

// Keeps the engine's queue filled.
std::vector<bool> answer_all(Engine& engine, const Tokenizer& tokenizer,
                             const std::vector<Problem>& problems, const std::string& name) {
  ProgressLine progress;
  const size_t window = 4 * size_t(engine.options().max_num_seqs);
  const auto start = std::chrono::steady_clock::now();
  std::vector<Attempt> attempts(problems.size());
  std::vector<bool> right(problems.size(), false);
  size_t submitted = 0, done = 0, num_right = 0;
  for (size_t first = 0; done < problems.size();) {
    for (; submitted < problems.size() && submitted < done + window; ++submitted) {
      const auto ids = tokenizer.encode(problems[submitted].prompt);
      const int room = engine.options().max_model_len - int(ids.size());
      if (room <= 0) throw Error(problems[submitted].id + ": is longer than --max-model-len");
      attempts[submitted].stream = engine.submit(
          {.prompt = ids,
           .sampling = {.temperature = 0, .max_tokens = std::min(kMaxReplyTokens, room)}});
    }
    engine.step();
    for (size_t i = first; i < submitted; ++i) {
      Attempt& attempt = attempts[i];
      if (attempt.stream == nullptr) continue;
      const StreamUpdate update = attempt.stream->poll();
      for (const Token& token : update.tokens) attempt.reply.push_back(token.id);
      if (!update.finish) continue;
      right[i] = is_right(problems[i], tokenizer.decode(attempt.reply, false));
      num_right += right[i];
      attempt.stream = nullptr;
      ++done;
    }
    while (first < submitted && attempts[first].stream == nullptr) ++first;
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    progress.show(name + " " + ProgressLine::bar(double(done) / double(problems.size())) + "  " +
                  std::to_string(done) + " of " + std::to_string(problems.size()) + " problems, " +
                  std::to_string(num_right) + " right, " + format_number(elapsed.count(), 0) +
                  " s");
  }
  return right;
}

}  // namespace nibble
