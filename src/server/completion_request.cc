#include "server/completion_request.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMaxOutput = INT32_MAX;
constexpr int kDefaultMaxTokens = 16;

class PromptReader {
 public:
  PromptReader(const Fields& fields, const Service& service, CompletionRequest& request)
      : fields_(fields), service_(service), request_(request) {}

  void read() {
    const Json* prompt = fields_.find("prompt");
    if (!prompt) fail();
    if (!prompt->is_array()) return add(*prompt);
    if (prompt->empty()) fields_.fail("prompt", "`prompt` must not be empty.");
    if (prompt->front().is_number()) return add(*prompt);
    if (prompt->size() > size_t(service_.options.max_completion_prompts)) {
      fields_.fail("prompt", "`prompt` has more than " +
                                 std::to_string(service_.options.max_completion_prompts) +
                                 " prompts.");
    }
    for (const Json& item : *prompt) add(item);
  }

 private:
  [[noreturn]] void fail() const {
    fields_.fail("prompt",
                 "`prompt` must be a string, an array of strings, an array of token ids "
                 "or an array of such arrays.");
  }

  void add(const Json& value) {
    CompletionPrompt prompt;
    if (value.is_string()) {
      const auto& text = value.get_ref<const std::string&>();
      check_prompt_bytes(text.size(), request_.generation, service_);
      prompt.ids = service_.tokenizer.encode(text);
    } else if (value.is_array()) {
      prompt.ids = ids(value);
    } else {
      fail();
    }
    if (prompt.ids.empty()) fields_.fail("prompt", "`prompt` must not be empty.");
    fit_prompt(prompt.ids, request_.generation, service_);
    if (request_.echo) prompt.text = service_.tokenizer.decode(prompt.ids, false);
    request_.prompts.push_back(std::move(prompt));
  }

  std::vector<int32_t> ids(const Json& value) const {
    std::vector<int32_t> result;
    result.reserve(value.size());
    for (const Json& item : value) {
      if (!item.is_number()) fail();
      const auto id = as_integer(item, 0, service_.vocab_size - 1);
      if (!id) {
        fields_.fail("prompt", "`prompt` holds " + item.dump() + ", which is not a token id from " +
                                   "0 to " + std::to_string(service_.vocab_size - 1) + ".");
      }
      result.push_back(int32_t(*id));
    }
    return result;
  }

  const Fields& fields_;
  const Service& service_;
  CompletionRequest& request_;
};

void refuse_unsupported(const Fields& fields) {
  if (!fields.string("suffix", 32 << 20).value_or("").empty()) {
    fields.fail("suffix", "`suffix` is not supported.");
  }
  if (fields.integer("best_of", 0, INT32_MAX).value_or(1) != 1) {
    fields.fail("best_of", "`best_of` is not supported; use `n`.");
  }
  if (fields.has("prompt_embeds")) {
    fields.fail("prompt_embeds", "`prompt_embeds` is not supported; send text or token ids.");
  }
}

}  // namespace

CompletionRequest read_completion_request(const Json& body, const Service& service) {
  const Fields fields(body);
  CompletionRequest request;
  GenerationRequest& generation = request.generation;
  generation = read_generation(fields, service);
  refuse_unsupported(fields);
  request.echo = fields.boolean("echo").value_or(false);
  const int max_tokens = int(
      fields.integer("max_tokens", request.echo ? 0 : 1, kMaxOutput).value_or(kDefaultMaxTokens));
  request.no_output = max_tokens == 0;
  generation.max_tokens = std::max(1, max_tokens);
  const auto logprobs = fields.integer("logprobs", 0, service.engine_options.max_logprobs);
  if (logprobs) {
    generation.sampling.logprobs = int(*logprobs);
    if (request.echo) {
      generation.sampling.prompt_logprobs =
          std::max(generation.sampling.prompt_logprobs, int(*logprobs));
    }
  }
  PromptReader(fields, service, request).read();
  size_t prompt_tokens = 0;
  for (const CompletionPrompt& prompt : request.prompts) prompt_tokens += prompt.ids.size();
  check_copies(request.prompts.size(), prompt_tokens, generation, service);
  return request;
}

}  // namespace nibble
