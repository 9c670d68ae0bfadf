// The flags of `vllm serve` that have no effect here: known all the same, so that a command line
// written for vLLM either works or says why not.
#pragma once

#include <string>
#include <vector>

namespace nibble {

struct TranslatedArguments {
  std::vector<std::string> arguments{};  // what is left for the parser
  std::vector<std::string> warnings{};   // one for each flag that was ignored
};

// Takes vLLM's flags without effect out of `arguments` (those after the subcommand), rewrites
// spellings (--flag_name, --model X, --no-switch). Throws Error with the reason for a flag
// that asks for something that this program does not do.
TranslatedArguments translate_vllm_flags(const std::vector<std::string>& arguments);

}  // namespace nibble
