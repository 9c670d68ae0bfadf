// Problems with known answers, answered greedily through the engine, all batched.
//
// A line of the file: {"id", "family", "prompt", "answer", "score": "exact" | "json"}; id is
// family/problem/turn. The prompt is encoded as it stands; the reply's text after the last
// </think>, stripped, must equal the answer, or as JSON be an equal value.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "text/tokenizer.h"

namespace nibble {

struct Problem {
  std::string id{}, family{}, prompt{}, answer{};
  bool compare_json = false;
};

// Of each family (all when `families` is empty) the problems 0 .. `most` - 1 (all when it is 0).
// Throws Error that names the file and line, or the family that is not there.
std::vector<Problem> load_problems(const std::string& path, int most,
                                   const std::vector<std::string>& families);

// Whether each problem is answered rightly. Shows progress on a terminal, after `name`.
std::vector<bool> answer_all(Engine& engine, const Tokenizer& tokenizer,
                             const std::vector<Problem>& problems, const std::string& name);

}  // namespace nibble
