// The parts that answers of chats and completions share.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "server/choice_output.h"
#include "server/json_writer.h"
#include "server/service.h"

namespace nibble {

// `prefix` and 32 random hexadecimal digits.
std::string random_id(std::string_view prefix);

struct AnswerIdentity {
  std::string id{};
  std::string object{};
  int64_t created_s = 0;
};

AnswerIdentity new_identity(std::string_view id_prefix, std::string_view object);

// Opens the answer's object and writes id, object, created, model and system_fingerprint.
void begin_answer(const AnswerIdentity& identity, const Service& service, JsonWriter& writer);

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t reasoning_tokens = 0;

  // A choice's output; its prompt is not counted.
  void add(const ChoiceOutput& output);
};

// "usage": {...}
void write_usage(const Usage& usage, JsonWriter& writer);

// "finish_reason" and "stop_reason": null until the choice is finished.
void write_finish(const ChoiceOutput& output, bool finished, std::string_view finish_reason,
                  JsonWriter& writer);

void write_ids(std::string_view key, const std::vector<int32_t>& ids, JsonWriter& writer);

// Why a choice failed: for a response, and as the last event of a stream.
HttpResponse failed_response(const ChoiceOutput& output);
std::string failed_event(const ChoiceOutput& output);

}  // namespace nibble
