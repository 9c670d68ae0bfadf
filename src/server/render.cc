#include "server/answer_parts.h"
#include "server/chat_request.h"
#include "server/completion_request.h"
#include "server/endpoints.h"
#include "server/json_body.h"

namespace nibble {

Answer render_chat_prompt(const Service& service, const HttpRequest& http_request) {
  ChatRequest request = read_chat_request(parse_json_object(http_request.body), service);
  Prompt prompt = render_chat(request.render, request.generation, service);
  fit_prompt(prompt.ids, request.generation, service);
  JsonWriter writer;
  writer.begin_object().key("prompt").string(prompt.text);
  write_ids("token_ids", prompt.ids, writer);
  writer.key("max_tokens").integer(request.generation.sampling.max_tokens);
  return HttpResponse{.body = writer.end_object().take()};
}

Answer render_completion_prompt(const Service& service, const HttpRequest& http_request) {
  const CompletionRequest request =
      read_completion_request(parse_json_object(http_request.body), service);
  JsonWriter writer;
  writer.begin_array();
  for (const CompletionPrompt& prompt : request.prompts) {
    writer.begin_object().key("prompt").string(service.tokenizer.decode(prompt.ids, false));
    write_ids("token_ids", prompt.ids, writer);
    writer.key("max_tokens").integer(request.generation.sampling.max_tokens);
    writer.end_object();
  }
  return HttpResponse{.body = writer.end_array().take()};
}

}  // namespace nibble
