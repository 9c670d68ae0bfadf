// ChoiceOutput: the tokens of one engine request -> text and events for the client, one delta a
// token. Detokenizing, stop strings and parsing happen here; a stop string cancels the request.
// One thread at a time.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/token_stream.h"
#include "server/generation_request.h"
#include "server/service.h"
#include "text/detokenizer.h"
#include "text/output_parser.h"
#include "text/stop_strings.h"

namespace nibble {

struct ChoiceOptions {
  std::vector<std::string> stop{};
  bool include_stop = false;
  bool skip_special_tokens = true;
  bool ignore_eos = false;
  int min_tokens = 0;  // stop strings count only after them
  std::vector<int32_t> stop_token_ids{};
  std::optional<ParserOptions> parser{};  // unset: the text is not parsed
};

struct OutputDelta {
  std::string text{};                 // without a parser
  std::vector<ParserEvent> events{};  // with one
  std::vector<Token> tokens{};        // that this delta stands for, a stop token too
};

class ChoiceOutput {
 public:
  ChoiceOutput(const Service& service, ChoiceOptions options, std::shared_ptr<TokenStream> stream);
  ~ChoiceOutput();  // cancels what is not finished
  ChoiceOutput(const ChoiceOutput&) = delete;
  ChoiceOutput& operator=(const ChoiceOutput&) = delete;

  // What has arrived. When finished() has become true, the last delta holds the rest of the text.
  std::vector<OutputDelta> poll();

  bool finished() const { return finished_; }
  // Once finished: stop, length, abort or error.
  const std::string& finish_reason() const { return finish_reason_; }
  const std::optional<std::string>& stop_string() const { return stop_.matched(); }
  std::optional<int32_t> stop_token() const { return stop_token_; }
  const std::string& error() const { return error_; }

  int num_tokens() const { return num_tokens_; }  // up to a stop string, with a stop token
  int num_reasoning_tokens() const { return num_reasoning_tokens_; }
  int num_tool_calls() const { return parser_ ? parser_->num_tool_calls() : 0; }
  int num_cached_tokens() const { return stream_->cached_tokens(); }
  // Of all prompt tokens but the first, if they were asked for; here with the first delta.
  const std::vector<TokenLogprobs>& prompt_logprobs() const { return prompt_logprobs_; }

 private:
  // A stretch of raw text and the tag it is.
  struct Piece {
    size_t bytes = 0;
    Tag tag = Tag::kNone;
  };

  void take(Token token, OutputDelta& delta);
  void end(Finish finish, OutputDelta& delta);
  void conclude(std::string reason, OutputDelta& delta);
  void feed(std::string_view text, Tag tag, OutputDelta& delta);
  void release(std::string_view text, OutputDelta& delta);
  void parse(std::string_view text, Tag tag, OutputDelta& delta);

  const Service& service_;
  const ChoiceOptions options_;
  const std::shared_ptr<TokenStream> stream_;
  Detokenizer detokenizer_;
  StopStrings stop_;
  std::optional<OutputParser> parser_;
  std::deque<Piece> pieces_;  // of the text that stop_ holds back
  std::string part_of_tag_;   // released, while the rest of the tag is held back

  bool finished_ = false;
  std::string finish_reason_;
  std::optional<int32_t> stop_token_;
  std::string error_;
  int num_tokens_ = 0;
  int num_reasoning_tokens_ = 0;
  std::vector<TokenLogprobs> prompt_logprobs_;
};

// Submits `request.num_choices` copies of the prompt, each with a seed of its own if there is one.
// Throws ApiError when the engine refuses one; those before it are cancelled.
std::vector<std::unique_ptr<ChoiceOutput>> start_choices(const std::vector<int32_t>& prompt,
                                                         const GenerationRequest& request,
                                                         const std::optional<ParserOptions>& parser,
                                                         const Service& service);

}  // namespace nibble
