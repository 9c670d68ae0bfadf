#include <memory>
#include <utility>
#include <vector>

#include "server/answer_parts.h"
#include "server/chat_delta.h"
#include "server/chat_request.h"
#include "server/choice_output.h"
#include "server/endpoints.h"
#include "server/json_body.h"
#include "server/logprobs.h"
#include "server/sse.h"

namespace nibble {
namespace {

struct ChatChoice {
  std::unique_ptr<ChoiceOutput> output{};
  bool begun = false;                // its first chunk is out
  ChatDelta message{};               // not streamed: so far
  JsonWriter logprobs{};             // not yet written
  std::vector<int32_t> token_ids{};  // likewise
  bool has_logprobs = false;         // likewise
};

class ChatAnswer : public LiveAnswer {
 public:
  ChatAnswer(const Service& service, ChatRequest request, std::vector<int32_t> prompt,
             std::vector<std::unique_ptr<ChoiceOutput>> outputs);
  bool advance() override;

 private:
  bool take(size_t index, OutputDelta delta, bool last);
  ChatDelta take_events(const OutputDelta& delta) const;
  void send_chunk(size_t index, const ChatDelta& delta, bool last);
  void send_usage();
  void respond();
  void write_logprobs(ChatChoice& choice, JsonWriter& writer) const;
  std::string finish_reason(const ChatChoice& choice) const;
  Usage total_usage() const;

  const Service& service_;
  const GenerationRequest generation_;
  const bool parallel_tool_calls_;
  const ReasoningField reasoning_field_;
  const std::vector<int32_t> prompt_;
  const AnswerIdentity identity_;
  const LogprobStyle style_;
  std::vector<ChatChoice> choices_;
};

ChatAnswer::ChatAnswer(const Service& service, ChatRequest request, std::vector<int32_t> prompt,
                       std::vector<std::unique_ptr<ChoiceOutput>> outputs)
    : LiveAnswer(request.generation.stream),
      service_(service),
      generation_(std::move(request.generation)),
      parallel_tool_calls_(request.parallel_tool_calls),
      reasoning_field_(request.include_reasoning ? service.options.reasoning_field
                                                 : ReasoningField::kNone),
      prompt_(std::move(prompt)),
      identity_(new_identity("chatcmpl-", streams ? "chat.completion.chunk" : "chat.completion")),
      style_{.tokenizer = service.tokenizer,
             .top = generation_.sampling.logprobs,
             .tokens_as_ids = generation_.return_tokens_as_token_ids} {
  for (auto& output : outputs) choices_.push_back({.output = std::move(output)});
  if (streams) response.content_type = kSseContentType;
}

bool ChatAnswer::advance() {
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
  if (generation_.include_usage) send_usage();
  response.body += kSseDone;
  return true;
}

// False: the choice failed, and with it the answer.
bool ChatAnswer::take(size_t index, OutputDelta delta, bool last) {
  ChatChoice& choice = choices_[index];
  if (last && choice.output->finish_reason() == "error") {
    if (streams) {
      append_sse_event(failed_event(*choice.output), response.body);
      response.body += kSseDone;
    } else {
      response = failed_response(*choice.output);
    }
    return false;
  }
  for (const Token& token : delta.tokens) {
    if (generation_.return_token_ids) choice.token_ids.push_back(token.id);
    if (!token.logprobs) continue;
    choice.has_logprobs = true;
    write_chat_logprob(token, style_, choice.logprobs);
  }
  if (streams) {
    const ChatDelta events = take_events(delta);
    const bool nothing = events.empty() && !choice.has_logprobs && choice.token_ids.empty();
    if (last || !nothing || !choice.begun) send_chunk(index, events, last);
    return true;
  }
  for (const ParserEvent& event : delta.events) {
    if (event.tool_call <= 0 || parallel_tool_calls_) choice.message.add(event);
  }
  return true;
}

ChatDelta ChatAnswer::take_events(const OutputDelta& delta) const {
  ChatDelta result;
  for (const ParserEvent& event : delta.events) {
    if (event.tool_call <= 0 || parallel_tool_calls_) result.add(event);
  }
  if (reasoning_field_ == ReasoningField::kNone) result.reasoning.clear();
  return result;
}

void ChatAnswer::send_chunk(size_t index, const ChatDelta& delta, bool last) {
  ChatChoice& choice = choices_[index];
  JsonWriter writer;
  begin_answer(identity_, service_, writer);
  if (!choice.begun && generation_.return_token_ids) {
    write_ids("prompt_token_ids", prompt_, writer);
  }
  writer.key("choices").begin_array().begin_object();
  writer.key("index").integer(int64_t(index)).key("delta");
  write_delta(delta, !choice.begun, reasoning_field_, writer);
  write_logprobs(choice, writer);
  write_finish(*choice.output, last, last ? finish_reason(choice) : "", writer);
  if (generation_.return_token_ids) {
    write_ids("token_ids", std::exchange(choice.token_ids, {}), writer);
  }
  writer.end_object().end_array();
  if (generation_.continuous_usage) {
    Usage usage{.prompt_tokens = int64_t(prompt_.size())};
    usage.add(*choice.output);
    write_usage(usage, writer);
  }
  append_sse_event(writer.end_object().take(), response.body);
  choice.begun = true;
}

void ChatAnswer::write_logprobs(ChatChoice& choice, JsonWriter& writer) const {
  writer.key("logprobs");
  if (!std::exchange(choice.has_logprobs, false)) {
    writer.null();
    return;
  }
  writer.begin_object().key("content").begin_array();
  writer.raw(choice.logprobs.take()).end_array().end_object();
}

std::string ChatAnswer::finish_reason(const ChatChoice& choice) const {
  const std::string& reason = choice.output->finish_reason();
  return reason == "stop" && choice.output->num_tool_calls() > 0 ? "tool_calls" : reason;
}

Usage ChatAnswer::total_usage() const {
  Usage usage{.prompt_tokens = int64_t(prompt_.size())};
  for (const ChatChoice& choice : choices_) usage.add(*choice.output);
  return usage;
}

void ChatAnswer::send_usage() {
  JsonWriter writer;
  begin_answer(identity_, service_, writer);
  writer.key("choices").begin_array().end_array();
  write_usage(total_usage(), writer);
  append_sse_event(writer.end_object().take(), response.body);
}

void ChatAnswer::respond() {
  JsonWriter writer;
  begin_answer(identity_, service_, writer);
  writer.key("choices").begin_array();
  for (size_t i = 0; i < choices_.size(); ++i) {
    ChatChoice& choice = choices_[i];
    writer.begin_object().key("index").integer(int64_t(i)).key("message");
    write_message(choice.message, reasoning_field_, writer);
    write_logprobs(choice, writer);
    write_finish(*choice.output, true, finish_reason(choice), writer);
    if (generation_.return_token_ids) write_ids("token_ids", choice.token_ids, writer);
    writer.end_object();
  }
  writer.end_array();
  write_usage(total_usage(), writer);
  if (generation_.prompt_logprobs) {
    LogprobStyle style = style_;
    style.top = generation_.sampling.prompt_logprobs;
    write_prompt_logprobs(prompt_, choices_.front().output->prompt_logprobs(), style, writer);
  }
  if (generation_.return_token_ids) write_ids("prompt_token_ids", prompt_, writer);
  response.body = writer.end_object().take();
}

}  // namespace

Answer chat_completions(const Service& service, const HttpRequest& http_request) {
  ChatRequest request = read_chat_request(parse_json_object(http_request.body), service);
  Prompt prompt = render_chat(request.render, request.generation, service);
  const ParserOptions parser = parser_options(request, prompt, service);
  fit_prompt(prompt.ids, request.generation, service);
  check_copies(1, prompt.ids.size(), request.generation, service);
  auto outputs = start_choices(prompt.ids, request.generation, parser, service);
  return std::make_unique<ChatAnswer>(service, std::move(request), std::move(prompt.ids),
                                      std::move(outputs));
}

}  // namespace nibble
