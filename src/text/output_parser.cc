#include "text/output_parser.h"

#include <utility>

#include "text/blanks.h"

namespace nibble {
namespace {

std::string_view name_of(Tag tag) {
  return kTagNames[size_t(tag)];
}

constexpr Tag kTags[] = {Tag::kThink,  Tag::kThinkEnd,  Tag::kToolCall, Tag::kToolCallEnd,
                         Tag::kArgKey, Tag::kArgKeyEnd, Tag::kArgValue, Tag::kArgValueEnd};

// The tag that `text` begins with.
Tag leading_tag(std::string_view text) {
  for (const Tag tag : kTags) {
    if (text.starts_with(name_of(tag))) return tag;
  }
  return Tag::kNone;
}

bool may_become_tag(std::string_view text) {
  for (const Tag tag : kTags) {
    if (name_of(tag).starts_with(text)) return true;
  }
  return false;
}

}  // namespace

bool starts_in_reasoning(std::string_view rendered_prompt) {
  if (without_trailing_blanks(rendered_prompt).ends_with(name_of(Tag::kThink))) return true;
  // Tags of earlier turns are the users' words or closed thoughts.
  const size_t turn = rendered_prompt.rfind("<|assistant|>");
  if (turn == std::string_view::npos) return false;
  rendered_prompt.remove_prefix(turn);
  const size_t opened = rendered_prompt.rfind(name_of(Tag::kThink));
  const size_t closed = rendered_prompt.rfind(name_of(Tag::kThinkEnd));
  return opened != std::string_view::npos && (closed == std::string_view::npos || opened > closed);
}

OutputParser::OutputParser(ParserOptions options) : options_(std::move(options)) {
  if (options_.reasoning && options_.starts_in_reasoning) state_ = State::kReasoning;
}

std::vector<ParserEvent> OutputParser::push(std::string_view piece, Tag tag) {
  if (tag != Tag::kNone) {
    take_text(std::exchange(partial_tag_, {}));
    take_tag(tag);
  } else if (options_.tags_in_text) {
    scan(piece);
  } else {
    take_text(piece);
  }
  return std::exchange(events_, {});
}

std::vector<ParserEvent> OutputParser::finish(bool complete) {
  const std::string partial = std::exchange(partial_tag_, {});
  const bool cut_in_call =
      name_of(Tag::kArgKey).starts_with(partial) || name_of(Tag::kToolCallEnd).starts_with(partial);
  if (state_ != State::kName || !cut_in_call) take_text(partial);
  if (state_ == State::kName) {
    state_ = State::kContent;
    if (complete && find_function(options_.tools, name_) != nullptr) {
      begin_call();
      end_call();
    }
  } else if (state_ == State::kValue) {
    if (!complete && !types_.only_string()) key_.reset();
    close_value();
    end_call();
  } else if (state_ == State::kArguments || state_ == State::kKey) {
    end_call();
  }
  if (num_tool_calls_ == 0) emit(ParserEvent::Kind::kContent, content_.blanks);
  content_.blanks.clear();
  return std::exchange(events_, {});
}

bool OutputParser::in_reasoning() const {
  return state_ == State::kReasoning ||
         (state_ == State::kName && before_call_ == State::kReasoning);
}

// Cuts text into tags and what is between them; a beginning of a tag waits in partial_tag_.
void OutputParser::scan(std::string_view text) {
  const std::string joined = std::exchange(partial_tag_, {}) + std::string(text);
  std::string_view rest = joined;
  size_t at = 0;
  while ((at = rest.find('<', at)) != std::string_view::npos) {
    const std::string_view candidate = rest.substr(at);
    if (const Tag tag = leading_tag(candidate); tag != Tag::kNone) {
      take_text(rest.substr(0, at));
      take_tag(tag);
      rest = candidate.substr(name_of(tag).size());
      at = 0;
    } else if (may_become_tag(candidate)) {
      partial_tag_ = candidate;
      rest = rest.substr(0, at);
      break;
    } else {
      ++at;
    }
  }
  take_text(rest);
}

void OutputParser::take_text(std::string_view text) {
  switch (state_) {
    case State::kReasoning:
    case State::kContent:
      return say(text);
    case State::kName:
      return take_name(text);
    case State::kArguments:
      return;
    case State::kKey:
      key_text_ += text;
      return;
    case State::kValue:
      return take_value(text);
  }
}

void OutputParser::take_tag(Tag tag) {
  switch (state_) {
    case State::kReasoning:
    case State::kContent:
      return take_tag_in_text(tag);
    case State::kName:
      return take_tag_in_name(tag);
    case State::kArguments:
      return take_tag_in_arguments(tag);
    case State::kKey:
      return take_tag_in_key(tag);
    case State::kValue:
      return take_tag_in_value(tag);
  }
}

void OutputParser::say(std::string_view text) {
  const bool thinking = state_ == State::kReasoning;
  Trimmed& side = thinking ? reasoning_ : content_;
  if (side.empty) text = without_leading_blanks(text);
  const std::string_view kept = without_trailing_blanks(text);
  if (!kept.empty()) {
    const auto kind = thinking ? ParserEvent::Kind::kReasoning : ParserEvent::Kind::kContent;
    emit(kind, std::exchange(side.blanks, {}));
    emit(kind, kept);
    side.empty = false;
  }
  side.blanks += text.substr(kept.size());
}

void OutputParser::take_tag_in_text(Tag tag) {
  if (tag == Tag::kThink && options_.reasoning) {
    state_ = State::kReasoning;
  } else if (tag == Tag::kThinkEnd && options_.reasoning) {
    state_ = State::kContent;
  } else if (tag == Tag::kToolCall && options_.tool_calls) {
    before_call_ = state_;
    state_ = State::kName;
    call_text_.clear();
    name_.clear();
  } else {
    say(name_of(tag));
  }
}

// A name has neither blanks nor `<`; blanks may surround it.
void OutputParser::take_name(std::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const bool name_ended = !name_.empty() && is_blank(call_text_.back());
    if (c == '<' || (name_ended && !is_blank(c))) {
      give_up_call();
      return say(text.substr(i));
    }
    call_text_ += c;
    if (!is_blank(c)) name_ += c;
  }
}

void OutputParser::take_tag_in_name(Tag tag) {
  if (tag == Tag::kArgKey) {
    begin_call();
    state_ = State::kKey;
  } else if (tag == Tag::kToolCallEnd) {
    begin_call();
    end_call();
  } else if (tag == Tag::kToolCall && name_.empty()) {
    call_text_.clear();
  } else {
    give_up_call();
    take_tag_in_text(tag);
  }
}

// What looked like a call is text.
void OutputParser::give_up_call() {
  state_ = before_call_;
  say(name_of(Tag::kToolCall));
  say(std::exchange(call_text_, {}));
}

void OutputParser::begin_call() {
  has_arguments_ = false;
  key_text_.clear();
  key_.reset();
  if (name_.empty()) return;
  ++num_tool_calls_;
  emit(ParserEvent::Kind::kToolCallStart, name_);
}

void OutputParser::take_tag_in_arguments(Tag tag) {
  if (tag == Tag::kArgKey) {
    state_ = State::kKey;
    key_text_.clear();
  } else if (tag == Tag::kArgValue) {
    state_ = State::kValue;
    open_value();
  } else if (tag == Tag::kToolCallEnd) {
    end_call();
  } else if (tag == Tag::kToolCall) {
    end_call();
    take_tag_in_text(tag);
  }
}

void OutputParser::take_tag_in_key(Tag tag) {
  if (tag == Tag::kArgKeyEnd) {
    state_ = State::kArguments;
    key_ = without_outer_blanks(key_text_);
  } else if (tag == Tag::kArgKey) {
    key_text_.clear();
  } else if (tag == Tag::kToolCallEnd) {
    end_call();
  } else {
    key_text_ += name_of(tag);
  }
}

void OutputParser::open_value() {
  value_.clear();
  if (!key_) return;
  types_ = argument_types(options_.tools, name_, *key_);
  if (!types_.only_string()) return;
  begin_argument();
  emit_arguments("\"");
}

void OutputParser::take_value(std::string_view text) {
  if (!key_) return;
  if (!types_.only_string()) {
    value_ += text;
    return;
  }
  std::string escaped;
  append_json_escaped(text, escaped);
  emit_arguments(escaped);
}

void OutputParser::take_tag_in_value(Tag tag) {
  if (tag == Tag::kArgValueEnd) {
    close_value();
    state_ = State::kArguments;
  } else if (tag == Tag::kToolCallEnd) {
    close_value();
    end_call();
  } else {
    take_value(name_of(tag));
  }
}

void OutputParser::close_value() {
  if (!key_) return;
  if (types_.only_string()) {
    emit_arguments("\"");
  } else {
    begin_argument();
    emit_arguments(argument_json(value_, types_));
  }
  key_.reset();
}

void OutputParser::begin_argument() {
  emit_arguments(has_arguments_ ? ", " : "{");
  emit_arguments(json_string(*key_) + ": ");
  has_arguments_ = true;
}

void OutputParser::end_call() {
  emit_arguments(has_arguments_ ? "}" : "{}");
  key_.reset();
  state_ = State::kContent;
}

// Appends to the last event where both are of one kind and call.
void OutputParser::emit(ParserEvent::Kind kind, std::string_view text) {
  if (text.empty()) return;
  const bool in_call =
      kind == ParserEvent::Kind::kToolCallStart || kind == ParserEvent::Kind::kToolCallArguments;
  const int tool_call = in_call ? num_tool_calls_ - 1 : -1;
  const bool joins =
      !events_.empty() && events_.back().kind == kind && events_.back().tool_call == tool_call;
  if (joins) {
    events_.back().text += text;
  } else {
    events_.push_back({.kind = kind, .text = std::string(text), .tool_call = tool_call});
  }
}

void OutputParser::emit_arguments(std::string_view json) {
  if (!name_.empty()) emit(ParserEvent::Kind::kToolCallArguments, json);
}

}  // namespace nibble
