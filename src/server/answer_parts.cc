#include "server/answer_parts.h"

#include <openssl/rand.h>

#include <array>
#include <ctime>

#include "base/check.h"
#include "server/errors.h"

namespace nibble {

std::string random_id(std::string_view prefix) {
  std::array<unsigned char, 16> bytes;
  CHECK(RAND_bytes(bytes.data(), int(bytes.size())) == 1);
  constexpr char kHex[] = "0123456789abcdef";
  std::string id(prefix);
  for (const unsigned char byte : bytes) {
    id += kHex[byte >> 4];
    id += kHex[byte & 15];
  }
  return id;
}

AnswerIdentity new_identity(std::string_view id_prefix, std::string_view object) {
  return {.id = random_id(id_prefix),
          .object = std::string(object),
          .created_s = int64_t(std::time(nullptr))};
}

void begin_answer(const AnswerIdentity& identity, const Service& service, JsonWriter& writer) {
  writer.begin_object();
  writer.key("id").string(identity.id);
  writer.key("object").string(identity.object);
  writer.key("created").integer(identity.created_s);
  writer.key("model").string(service.model_name());
  writer.key("system_fingerprint").string("nibble-" + service.options.version);
}

void Usage::add(const ChoiceOutput& output) {
  completion_tokens += output.num_tokens();
  cached_tokens = std::max<int64_t>(cached_tokens, output.num_cached_tokens());
  reasoning_tokens += output.num_reasoning_tokens();
}

void write_usage(const Usage& usage, JsonWriter& writer) {
  writer.key("usage").begin_object();
  writer.key("prompt_tokens").integer(usage.prompt_tokens);
  writer.key("total_tokens").integer(usage.prompt_tokens + usage.completion_tokens);
  writer.key("completion_tokens").integer(usage.completion_tokens);
  writer.key("prompt_tokens_details").begin_object();
  writer.key("cached_tokens").integer(usage.cached_tokens).end_object();
  writer.key("completion_tokens_details").begin_object();
  writer.key("reasoning_tokens").integer(usage.reasoning_tokens).end_object();
  writer.end_object();
}

void write_finish(const ChoiceOutput& output, bool finished, std::string_view finish_reason,
                  JsonWriter& writer) {
  writer.key("finish_reason");
  if (!finished) {
    writer.null().key("stop_reason").null();
    return;
  }
  writer.string(finish_reason).key("stop_reason");
  if (output.stop_string()) {
    writer.string(*output.stop_string());
  } else if (output.stop_token()) {
    writer.integer(*output.stop_token());
  } else {
    writer.null();
  }
}

void write_ids(std::string_view key, const std::vector<int32_t>& ids, JsonWriter& writer) {
  writer.key(key).begin_array();
  for (const int32_t id : ids) writer.integer(id);
  writer.end_array();
}

HttpResponse failed_response(const ChoiceOutput& output) {
  return error_response(503, "The engine failed: " + output.error());
}

std::string failed_event(const ChoiceOutput& output) {
  return error_body(503, "The engine failed: " + output.error());
}

}  // namespace nibble
