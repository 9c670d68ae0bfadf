#include "server/choice_output.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/error.h"

namespace nibble {
namespace {

// Between the seeds of a request's choices: no other request's seed is likely to be one of them.
constexpr uint64_t kSeedStep = 0x9e3779b97f4a7c15;

}  // namespace

ChoiceOutput::ChoiceOutput(const Service& service, ChoiceOptions options,
                           std::shared_ptr<TokenStream> stream)
    : service_(service),
      options_(std::move(options)),
      stream_(std::move(stream)),
      detokenizer_(service.tokenizer, options_.skip_special_tokens),
      stop_(options_.stop, options_.include_stop) {
  if (options_.parser) parser_.emplace(*options_.parser);
}

ChoiceOutput::~ChoiceOutput() {
  if (!finished_) stream_->cancel();
}

std::vector<OutputDelta> ChoiceOutput::poll() {
  std::vector<OutputDelta> deltas;
  if (finished_) return deltas;
  StreamUpdate update = stream_->poll();
  if (!update.prompt_logprobs.empty()) prompt_logprobs_ = std::move(update.prompt_logprobs);
  for (Token& token : update.tokens) {
    take(std::move(token), deltas.emplace_back());
    if (finished_) return deltas;
  }
  if (update.finish) {
    if (deltas.empty() || update.finish->stop_token) deltas.emplace_back();
    end(std::move(*update.finish), deltas.back());
  }
  return deltas;
}

void ChoiceOutput::take(Token token, OutputDelta& delta) {
  ++num_tokens_;
  if (parser_ && parser_->in_reasoning()) ++num_reasoning_tokens_;
  const Tag tag = parser_ ? service_.tags.of(token.id) : Tag::kNone;
  if (tag == Tag::kNone) {
    feed(detokenizer_.push(token.id), Tag::kNone, delta);
  } else {
    feed(detokenizer_.flush(), Tag::kNone, delta);
    feed(kTagNames[size_t(tag)], tag, delta);
  }
  delta.tokens.push_back(std::move(token));
  if (stop_.matched()) {
    stream_->cancel(FinishReason::kStop);
    conclude("stop", delta);
  }
}

void ChoiceOutput::end(Finish finish, OutputDelta& delta) {
  if (finish.stop_token) {
    ++num_tokens_;
    const int32_t id = finish.stop_token->id;
    const auto contains = [&](const std::vector<int32_t>& ids) {
      return std::find(ids.begin(), ids.end(), id) != ids.end();
    };
    const bool is_eos = !options_.ignore_eos && contains(service_.engine_options.eos_token_ids);
    if (!is_eos && contains(options_.stop_token_ids)) stop_token_ = id;
    if (options_.include_stop) feed(detokenizer_.push(id), Tag::kNone, delta);
    delta.tokens.push_back(std::move(*finish.stop_token));
  }
  feed(detokenizer_.flush(), Tag::kNone, delta);
  if (!stop_.matched()) release(stop_.flush(), delta);
  constexpr const char* kReasons[] = {"stop", "length", "abort", "error"};
  error_ = finish.error;
  conclude(stop_.matched() ? "stop" : kReasons[size_t(finish.reason)], delta);
}

void ChoiceOutput::conclude(std::string reason, OutputDelta& delta) {
  finished_ = true;
  finish_reason_ = std::move(reason);
  if (!parser_) return;
  parse(std::exchange(part_of_tag_, {}), Tag::kNone, delta);
  const std::vector<ParserEvent> rest = parser_->finish(finish_reason_ == "stop");
  delta.events.insert(delta.events.end(), rest.begin(), rest.end());
}

void ChoiceOutput::feed(std::string_view text, Tag tag, OutputDelta& delta) {
  if (text.empty()) return;
  pieces_.push_back({text.size(), tag});
  if (num_tokens_ <= options_.min_tokens) return release(text, delta);
  release(stop_.push(text), delta);
}

void ChoiceOutput::release(std::string_view text, OutputDelta& delta) {
  if (!parser_) {
    delta.text += text;
    pieces_.clear();
    return;
  }
  while (!text.empty()) {
    CHECK(!pieces_.empty());
    Piece& piece = pieces_.front();
    const std::string_view part = text.substr(0, piece.bytes);
    text.remove_prefix(part.size());
    piece.bytes -= part.size();
    if (piece.tag == Tag::kNone) {
      parse(part, Tag::kNone, delta);
    } else {
      part_of_tag_ += part;
      if (piece.bytes == 0) parse(std::exchange(part_of_tag_, {}), piece.tag, delta);
    }
    if (piece.bytes == 0) pieces_.pop_front();
  }
}

void ChoiceOutput::parse(std::string_view text, Tag tag, OutputDelta& delta) {
  if (text.empty()) return;
  const std::vector<ParserEvent> events = parser_->push(text, tag);
  delta.events.insert(delta.events.end(), events.begin(), events.end());
}

std::vector<std::unique_ptr<ChoiceOutput>> start_choices(const std::vector<int32_t>& prompt,
                                                         const GenerationRequest& request,
                                                         const std::optional<ParserOptions>& parser,
                                                         const Service& service) {
  if (!service.healthy()) throw ApiError(503, "The engine is not running.");
  const ChoiceOptions options{.stop = request.stop,
                              .include_stop = request.include_stop,
                              .skip_special_tokens = request.skip_special_tokens,
                              .ignore_eos = request.sampling.ignore_eos,
                              .min_tokens = request.sampling.min_tokens,
                              .stop_token_ids = request.sampling.stop_token_ids,
                              .parser = parser};
  std::vector<std::unique_ptr<ChoiceOutput>> choices;
  for (int i = 0; i < request.num_choices; ++i) {
    Request engine_request{
        .prompt = prompt, .sampling = request.sampling, .cache_salt = request.cache_salt};
    std::optional<uint64_t>& seed = engine_request.sampling.seed;
    if (seed) *seed += uint64_t(i) * kSeedStep;
    auto stream = service.submit(std::move(engine_request));
    choices.push_back(std::make_unique<ChoiceOutput>(service, options, std::move(stream)));
  }
  return choices;
}

}  // namespace nibble
