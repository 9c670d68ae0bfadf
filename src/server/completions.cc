#include <memory>
#include <utility>
#include <vector>

#include "server/answer_parts.h"
#include "server/choice_output.h"
#include "server/completion_request.h"
#include "server/endpoints.h"
#include "server/json_body.h"
#include "server/logprobs.h"
#include "server/sse.h"

namespace nibble {
namespace {

struct CompletionChoice {
  const CompletionPrompt* prompt = nullptr;
  std::unique_ptr<ChoiceOutput> output{};
  CompletionLogprobs logprobs;
  bool begun = false;
  bool has_prompt_ids = false;       // they have been written
  bool has_news = false;             // logprobs or ids that are not yet written
  std::string text{};                // not streamed: so far
  std::vector<int32_t> token_ids{};  // not yet written
};

class CompletionAnswer : public LiveAnswer {
 public:
  CompletionAnswer(const Service& service, CompletionRequest request);
  bool advance() override;

 private:
  void begin(CompletionChoice& choice, std::string& text);
  bool take(size_t index, OutputDelta delta, bool last);
  void write_choice(size_t index, std::string_view text, bool finished, JsonWriter& writer);
  void send_chunk(size_t index, std::string_view text, bool last);
  void send_usage();
  void respond();
  bool wants_logprobs() const { return request_.generation.sampling.logprobs >= 0; }
  Usage total_usage() const;

  const Service& service_;
  const CompletionRequest request_;
  const AnswerIdentity identity_;
  const LogprobStyle style_;
  std::vector<CompletionChoice> choices_;
};

CompletionAnswer::CompletionAnswer(const Service& service, CompletionRequest request)
    : LiveAnswer(request.generation.stream),
      service_(service),
      request_(std::move(request)),
      identity_(new_identity("cmpl-", "text_completion")),
      style_{.tokenizer = service.tokenizer,
             .top = request_.generation.sampling.logprobs,
             .tokens_as_ids = request_.generation.return_tokens_as_token_ids} {
  if (streams) response.content_type = kSseContentType;
  for (const CompletionPrompt& prompt : request_.prompts) {
    for (auto& output : start_choices(prompt.ids, request_.generation, std::nullopt, service)) {
      choices_.push_back(
          {.prompt = &prompt, .output = std::move(output), .logprobs = CompletionLogprobs(style_)});
    }
  }
}

bool CompletionAnswer::advance() {
  bool whole = true;
  for (size_t i = 0; i < choices_.size(); ++i) {
    ChoiceOutput& output = *choices_[i].output;
    std::vector<OutputDelta> deltas = output.poll();
    for (size_t d = 0; d < deltas.size(); ++d) {
      const bool last = output.finished() && d + 1 == deltas.size();
      if (!take(i, std::move(deltas[d]), last)) return true;
    }
    whole = whole && output.finished();
  }
  if (!whole) return false;
  if (!streams) {
    respond();
    return true;
  }
  if (request_.generation.include_usage) send_usage();
  response.body += kSseDone;
  return true;
}

// With echo, the prompt comes before the first token, with its log-probabilities.
void CompletionAnswer::begin(CompletionChoice& choice, std::string& text) {
  if (!request_.echo) return;
  text = choice.prompt->text + text;
  if (!wants_logprobs()) return;
  const std::vector<int32_t>& ids = choice.prompt->ids;
  const std::vector<TokenLogprobs>& logprobs = choice.output->prompt_logprobs();
  for (size_t i = 0; i < ids.size(); ++i) {
    choice.logprobs.add(ids[i], i > 0 && i <= logprobs.size() ? &logprobs[i - 1] : nullptr);
  }
}

// False: the choice failed, and with it the answer.
bool CompletionAnswer::take(size_t index, OutputDelta delta, bool last) {
  CompletionChoice& choice = choices_[index];
  if (last && choice.output->finish_reason() == "error") {
    if (streams) {
      append_sse_event(failed_event(*choice.output), response.body);
      response.body += kSseDone;
    } else {
      response = failed_response(*choice.output);
    }
    return false;
  }
  if (request_.no_output) delta = {};
  const bool first = !std::exchange(choice.begun, true);
  if (first) begin(choice, delta.text);
  for (const Token& token : delta.tokens) {
    if (request_.generation.return_token_ids) choice.token_ids.push_back(token.id);
    if (token.logprobs) choice.logprobs.add(token.id, &*token.logprobs);
    choice.has_news = choice.has_news || token.logprobs || request_.generation.return_token_ids;
  }
  if (!streams) {
    choice.text += delta.text;
  } else if (first || last || choice.has_news || !delta.text.empty()) {
    send_chunk(index, delta.text, last);
  }
  return true;
}

void CompletionAnswer::write_choice(size_t index, std::string_view text, bool finished,
                                    JsonWriter& writer) {
  CompletionChoice& choice = choices_[index];
  writer.begin_object().key("index").integer(int64_t(index)).key("text").string(text);
  writer.key("logprobs");
  if (wants_logprobs()) {
    choice.logprobs.write(writer);
  } else {
    writer.null();
  }
  const std::string& reason = choice.output->finish_reason();
  write_finish(*choice.output, finished, request_.no_output ? "length" : reason, writer);
  if (request_.generation.return_token_ids) {
    write_ids("token_ids", std::exchange(choice.token_ids, {}), writer);
    if (!std::exchange(choice.has_prompt_ids, true)) {
      write_ids("prompt_token_ids", choice.prompt->ids, writer);
    }
  }
  if (request_.generation.prompt_logprobs) {
    LogprobStyle style = style_;
    style.top = request_.generation.sampling.prompt_logprobs;
    write_prompt_logprobs(choice.prompt->ids, choice.output->prompt_logprobs(), style, writer);
  }
  choice.has_news = false;
  writer.end_object();
}

void CompletionAnswer::send_chunk(size_t index, std::string_view text, bool last) {
  JsonWriter writer;
  begin_answer(identity_, service_, writer);
  writer.key("choices").begin_array();
  write_choice(index, text, last, writer);
  writer.end_array();
  if (request_.generation.continuous_usage) {
    Usage usage{.prompt_tokens = int64_t(choices_[index].prompt->ids.size())};
    usage.add(*choices_[index].output);
    write_usage(usage, writer);
  }
  append_sse_event(writer.end_object().take(), response.body);
}

Usage CompletionAnswer::total_usage() const {
  Usage usage;
  for (const CompletionPrompt& prompt : request_.prompts) {
    usage.prompt_tokens += int64_t(prompt.ids.size());
  }
  for (const CompletionChoice& choice : choices_) usage.add(*choice.output);
  if (request_.no_output) usage.completion_tokens = 0;
  return usage;
}

void CompletionAnswer::send_usage() {
  JsonWriter writer;
  begin_answer(identity_, service_, writer);
  writer.key("choices").begin_array().end_array();
  write_usage(total_usage(), writer);
  append_sse_event(writer.end_object().take(), response.body);
}

void CompletionAnswer::respond() {
  JsonWriter writer;
  begin_answer(identity_, service_, writer);
  writer.key("choices").begin_array();
  for (size_t i = 0; i < choices_.size(); ++i) write_choice(i, choices_[i].text, true, writer);
  writer.end_array();
  write_usage(total_usage(), writer);
  response.body = writer.end_object().take();
}

}  // namespace

Answer completions(const Service& service, const HttpRequest& http_request) {
  return std::make_unique<CompletionAnswer>(
      service, read_completion_request(parse_json_object(http_request.body), service));
}

}  // namespace nibble
