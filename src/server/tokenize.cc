#include <string>
#include <vector>

#include "base/error.h"
#include "base/utf8.h"
#include "server/answer_parts.h"
#include "server/chat_request.h"
#include "server/endpoints.h"
#include "server/fields.h"
#include "server/json_body.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxTextBytes = 8 << 20;
constexpr size_t kMaxTokens = 4 << 20;

// vLLM's form: a prompt or messages.
Answer tokenize_prompt(const Fields& fields, const Service& service) {
  std::vector<int32_t> ids;
  fields.boolean("add_special_tokens");
  const bool with_strings = fields.boolean("return_token_strs").value_or(false);
  if (fields.has("messages")) {
    ids = render_prompt(*service.chat_template, service.tokenizer, read_render(fields, service),
                        service.options.parse_special_tokens_in_messages)
              .ids;
  } else {
    const auto prompt = fields.string("prompt", kMaxTextBytes);
    if (!prompt) fields.fail("prompt", "One of `prompt`, `messages` and `content` is needed.");
    ids = service.tokenizer.encode(*prompt);
  }
  JsonWriter writer;
  writer.begin_object().key("count").integer(int64_t(ids.size()));
  writer.key("max_model_len").integer(service.engine_options.max_model_len);
  write_ids("tokens", ids, writer);
  writer.key("token_strs");
  if (with_strings) {
    writer.begin_array();
    for (const int32_t id : ids) writer.string(service.tokenizer.bytes(id));
    writer.end_array();
  } else {
    writer.null();
  }
  return HttpResponse{.body = writer.end_object().take()};
}

// llama-server's form. A piece that is not text is an array of bytes.
Answer tokenize_content(const Fields& fields, const Service& service) {
  const auto content = fields.string("content", kMaxTextBytes);
  fields.boolean("add_special");
  const bool parse_special = fields.boolean("parse_special").value_or(true);
  const bool with_pieces = fields.boolean("with_pieces").value_or(false);
  const Tokenizer& tokenizer = service.tokenizer;
  const std::vector<int32_t> ids =
      parse_special ? tokenizer.encode(*content) : tokenizer.encode_plain(*content);
  JsonWriter writer;
  writer.begin_object();
  if (!with_pieces) {
    write_ids("tokens", ids, writer);
    return HttpResponse{.body = writer.end_object().take()};
  }
  writer.key("tokens").begin_array();
  for (const int32_t id : ids) {
    writer.begin_object().key("id").integer(id).key("piece");
    const std::string_view piece = tokenizer.bytes(id);
    if (is_valid_utf8(piece)) {
      writer.string(piece);
    } else {
      writer.begin_array();
      for (const char byte : piece) writer.integer(static_cast<unsigned char>(byte));
      writer.end_array();
    }
    writer.end_object();
  }
  return HttpResponse{.body = writer.end_array().end_object().take()};
}

}  // namespace

Answer tokenize(const Service& service, const HttpRequest& request) {
  const Json body = parse_json_object(request.body);
  const Fields fields(body);
  check_model(fields, service);
  return fields.has("content") ? tokenize_content(fields, service)
                               : tokenize_prompt(fields, service);
}

// vLLM reads the text under `prompt`, llama-server under `content`.
Answer detokenize(const Service& service, const HttpRequest& request) {
  const Json body = parse_json_object(request.body);
  const Fields fields(body);
  check_model(fields, service);
  const Json* tokens = fields.array("tokens", kMaxTokens);
  if (!tokens) fields.fail_type("tokens", "an array of token ids");
  std::vector<int32_t> ids;
  for (const Json& item : *tokens) {
    const auto id = as_integer(item, 0, service.vocab_size - 1);
    if (!id) {
      fields.fail("tokens", "`tokens` must hold token ids from 0 to " +
                                std::to_string(service.vocab_size - 1) + ".");
    }
    ids.push_back(int32_t(*id));
  }
  const std::string text = service.tokenizer.decode(ids, false);
  JsonWriter writer;
  writer.begin_object().key("prompt").string(text).key("content").string(text);
  return HttpResponse{.body = writer.end_object().take()};
}

}  // namespace nibble
