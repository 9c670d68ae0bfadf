#include "server/generation_request.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "base/error.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMaxTokens = std::numeric_limits<int32_t>::max();
constexpr size_t kMaxStopBytes = 1024;
constexpr size_t kMaxIds = 1024;
constexpr size_t kMaxCacheSaltCharacters = 128;
// Copies of one prompt for n choices, in tokens.
constexpr size_t kMaxCopiedTokens = size_t(1) << 26;

// Fields that ask for constrained output: ignoring them would answer something else than asked.
constexpr std::string_view kConstraints[] = {
    "structured_outputs",        "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "guided_whitespace_pattern", "grammar",     "json_schema"};

void refuse_unsupported(const Fields& fields) {
  for (const std::string_view name : kConstraints) {
    if (!fields.has(name)) continue;
    fields.fail(name, "`" + std::string(name) +
                          "` is not supported: this build has no grammar engine to constrain "
                          "the output with. Leave it out.");
  }
  const auto refuse_list = [&](std::string_view name, const char* instead) {
    const Json* list = fields.array(name, kMaxIds);
    if (list && !list->empty()) {
      fields.fail(name, "`" + std::string(name) + "` is not supported" + instead + ".");
    }
  };
  refuse_list("bad_words", "; `logit_bias` can forbid single tokens");
  refuse_list("logprob_token_ids", "");
  if (fields.boolean("use_beam_search").value_or(false)) {
    fields.fail("use_beam_search", "Beam search is not supported.");
  }
  if (fields.integer("priority", INT64_MIN, INT64_MAX).value_or(0) != 0) {
    fields.fail("priority",
                "`priority` is not supported: requests are served in order of arrival.");
  }
}

void check_response_format(const Fields& fields) {
  const Json* format = fields.object("response_format");
  if (!format) return;
  const Fields inner(*format, fields.path("response_format"));
  const std::optional<std::string> type = inner.string("type", 64);
  if (type == "text") return;
  if (type == "json_schema" && !inner.has("json_schema")) {
    inner.fail("json_schema", "`response_format` of type json_schema needs a `json_schema`.");
  }
  if (type == "json_object" || type == "json_schema" || type == "structural_tag") {
    fields.fail("response_format", "`response_format` of type " + *type +
                                       " is not supported: this build has no grammar engine to "
                                       "constrain the output with. Only type text is.");
  }
  inner.fail("type",
             "`response_format.type` must be text, json_object, json_schema or "
             "structural_tag.");
}

std::vector<int32_t> read_ids(const Fields& fields, std::string_view name, const Service& service) {
  std::vector<int32_t> ids;
  const Json* list = fields.array(name, kMaxIds);
  if (!list) return ids;
  for (const Json& item : *list) {
    const auto id = as_integer(item, 0, service.vocab_size - 1);
    if (!id) {
      fields.fail(name, "`" + fields.path(name) + "` must hold token ids from 0 to " +
                            std::to_string(service.vocab_size - 1) + ".");
    }
    ids.push_back(int32_t(*id));
  }
  return ids;
}

void read_stop(const Fields& fields, const Service& service, GenerationRequest& request) {
  const Json* stop = fields.find("stop");
  if (!stop) return;
  const auto add = [&](const Json& item) {
    if (!item.is_string()) fields.fail_type("stop", "a string or an array of strings");
    const auto& text = item.get_ref<const std::string&>();
    if (text.empty()) fields.fail("stop", "`stop` must not hold an empty string.");
    if (text.size() > kMaxStopBytes) {
      fields.fail("stop",
                  "A string of `stop` is longer than " + std::to_string(kMaxStopBytes) + " bytes.");
    }
    request.stop.push_back(text);
  };
  if (!stop->is_array()) return add(*stop);
  if (stop->size() > size_t(service.options.max_stop_strings)) {
    fields.fail("stop", "`stop` has more than " + std::to_string(service.options.max_stop_strings) +
                            " strings.");
  }
  for (const Json& item : *stop) add(item);
}

void read_logit_bias(const Fields& fields, const Service& service, SamplingParams& sampling) {
  const Json* bias = fields.object("logit_bias");
  if (!bias) return;
  for (const auto& [key, value] : bias->items()) {
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 ||
        id >= service.vocab_size) {
      fields.fail("logit_bias", "`logit_bias` must map token ids from 0 to " +
                                    std::to_string(service.vocab_size - 1) +
                                    ", written as strings, to numbers.");
    }
    if (!value.is_number()) {
      fields.fail("logit_bias", "`logit_bias` must map token ids to numbers.");
    }
    sampling.logit_bias.emplace_back(id, float(std::clamp(value.get<double>(), -100.0, 100.0)));
  }
}

void read_sampling(const Fields& fields, const Service& service, SamplingParams& sampling) {
  const GenerationDefaults& defaults = service.options.generation;
  const auto number = [&](const char* name, NumberRange range, float otherwise) {
    return float(fields.number(name, range).value_or(otherwise));
  };
  sampling.temperature = number("temperature", {.min = 0, .max = 1e6}, defaults.temperature);
  // Colder than that, logits would overflow.
  if (sampling.temperature < 1e-5f) sampling.temperature = 0;
  if (sampling.temperature > 0) sampling.temperature = std::max(sampling.temperature, 0.01f);
  sampling.top_p = number("top_p", {.min = 0, .max = 1, .above_min = true}, defaults.top_p);
  sampling.min_p = number("min_p", {.min = 0, .max = 1}, defaults.min_p);
  sampling.top_k = int(fields.integer("top_k", -1, kMaxTokens).value_or(defaults.top_k));
  sampling.top_k = std::clamp(sampling.top_k, 0, service.vocab_size);
  sampling.repetition_penalty =
      number("repetition_penalty", {.min = 0.01, .max = 100}, defaults.repetition_penalty);
  sampling.presence_penalty = number("presence_penalty", {.min = -2, .max = 2}, 0);
  sampling.frequency_penalty = number("frequency_penalty", {.min = -2, .max = 2}, 0);
  if (const auto seed = fields.integer("seed", INT64_MIN, INT64_MAX))
    sampling.seed = uint64_t(*seed);
  sampling.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  sampling.min_tokens = int(fields.integer("min_tokens", 0, kMaxTokens).value_or(0));
  sampling.stop_token_ids = read_ids(fields, "stop_token_ids", service);
  sampling.allowed_token_ids = read_ids(fields, "allowed_token_ids", service);
  const Json* allowed = fields.find("allowed_token_ids");
  if (allowed && allowed->empty()) {
    fields.fail("allowed_token_ids", "`allowed_token_ids` must not be empty.");
  }
  read_logit_bias(fields, service, sampling);
}

void read_stream(const Fields& fields, const Service& service, GenerationRequest& request) {
  request.stream = fields.boolean("stream").value_or(false);
  request.include_usage = request.stream && service.options.force_include_usage;
  const Json* options = fields.object("stream_options");
  if (!options) return;
  if (!request.stream) {
    fields.fail("stream_options", "`stream_options` needs `stream` to be true.");
  }
  const Fields inner(*options, fields.path("stream_options"));
  if (inner.boolean("include_usage").value_or(false)) request.include_usage = true;
  request.continuous_usage =
      inner.boolean("continuous_usage_stats").value_or(false) && request.include_usage;
}

void read_prompt_logprobs(const Fields& fields, const Service& service,
                          GenerationRequest& request) {
  const auto count = fields.integer("prompt_logprobs", 0, service.engine_options.max_logprobs);
  if (!count) return;
  if (request.stream) {
    fields.fail("prompt_logprobs", "`prompt_logprobs` is not available with `stream`.");
  }
  request.prompt_logprobs = true;
  request.sampling.prompt_logprobs = int(*count);
}

void read_cache_salt(const Fields& fields, GenerationRequest& request) {
  const auto salt = fields.string("cache_salt", kMaxCacheSaltCharacters * 4);
  if (!salt) return;
  const auto characters =
      std::count_if(salt->begin(), salt->end(), [](char c) { return (c & 0xC0) != 0x80; });
  if (salt->empty() || size_t(characters) > kMaxCacheSaltCharacters ||
      salt->find_first_of(std::string_view("@/\\\0", 4)) != std::string::npos) {
    fields.fail("cache_salt",
                "`cache_salt` must have 1 to 128 characters, none of them @, /, \\ "
                "or NUL.");
  }
  request.cache_salt = *salt;
}

void read_truncation(const Fields& fields, GenerationRequest& request) {
  const auto count = fields.integer("truncate_prompt_tokens", -1, kMaxTokens);
  if (count) {
    if (*count == 0) fields.fail_type("truncate_prompt_tokens", "-1 or at least 1");
    request.truncate_prompt_tokens = int(*count);
  }
  const auto side = fields.string("truncation_side", 16);
  if (!side) return;
  if (*side != "left" && *side != "right") fields.fail_type("truncation_side", "left or right");
  request.truncate_right = *side == "right";
}

[[noreturn]] void fail_overflow(int64_t prompt_tokens, int64_t output_tokens,
                                const Service& service) {
  throw ApiError(400,
                 "This model's maximum context length is " +
                     std::to_string(service.engine_options.max_model_len) +
                     " tokens. However, you requested " +
                     std::to_string(prompt_tokens + output_tokens) + " tokens (" +
                     std::to_string(prompt_tokens) + " in the messages, " +
                     std::to_string(output_tokens) +
                     " in the completion). Please reduce the length of the messages or "
                     "completion.",
                 "", "context_length_exceeded");
}

}  // namespace

GenerationRequest read_generation(const Fields& fields, const Service& service) {
  GenerationRequest request;
  check_model(fields, service);
  read_sampling(fields, service, request.sampling);
  const int max_choices = std::min(service.options.max_choices, service.engine_options.max_waiting);
  request.num_choices = int(fields.integer("n", 1, max_choices).value_or(1));
  read_stop(fields, service, request);
  request.include_stop = fields.boolean("include_stop_str_in_output").value_or(false);
  request.skip_special_tokens = fields.boolean("skip_special_tokens").value_or(true);
  fields.boolean("spaces_between_special_tokens");
  fields.number("length_penalty", {.min = -1e6, .max = 1e6});
  read_stream(fields, service, request);
  read_prompt_logprobs(fields, service, request);
  request.return_token_ids = fields.boolean("return_token_ids").value_or(false);
  request.return_tokens_as_token_ids = fields.boolean("return_tokens_as_token_ids")
                                           .value_or(service.options.return_tokens_as_token_ids);
  read_cache_salt(fields, request);
  read_truncation(fields, request);
  fields.boolean("add_special_tokens");
  fields.string("user", 1 << 20);
  fields.string("request_id", 1 << 16);
  check_response_format(fields);
  refuse_unsupported(fields);
  return request;
}

void check_model(const Fields& fields, const Service& service) {
  const auto model = fields.string("model", 4096);
  const auto& names = service.options.model_names;
  if (!model || model->empty() || std::find(names.begin(), names.end(), *model) != names.end()) {
    return;
  }
  throw ApiError(404, "The model `" + *model + "` does not exist.", "model");
}

int output_budget(int prompt_tokens, std::optional<int> asked, const Service& service) {
  const int room = service.engine_options.max_model_len - prompt_tokens;
  if (room < asked.value_or(1)) fail_overflow(prompt_tokens, asked.value_or(1), service);
  return std::min(asked.value_or(room), service.options.generation.max_new_tokens.value_or(room));
}

void check_prompt_bytes(size_t prompt_bytes, const GenerationRequest& request,
                        const Service& service) {
  if (request.truncate_prompt_tokens) return;
  const size_t longest = size_t(std::max(1, service.tokenizer.longest_token_bytes()));
  const size_t fewest_tokens = (prompt_bytes + longest - 1) / longest;
  if (fewest_tokens >= size_t(service.engine_options.max_model_len)) {
    fail_overflow(int64_t(fewest_tokens), request.max_tokens.value_or(1), service);
  }
}

void fit_prompt(std::vector<int32_t>& prompt, GenerationRequest& request, const Service& service) {
  if (request.truncate_prompt_tokens) {
    const int room = service.engine_options.max_model_len - request.max_tokens.value_or(1);
    const int keep =
        *request.truncate_prompt_tokens < 0 ? std::max(1, room) : *request.truncate_prompt_tokens;
    if (prompt.size() > size_t(keep)) {
      if (request.truncate_right) {
        prompt.resize(size_t(keep));
      } else {
        prompt.erase(prompt.begin(), prompt.end() - keep);
      }
    }
  }
  SamplingParams& sampling = request.sampling;
  sampling.max_tokens = output_budget(int(prompt.size()), request.max_tokens, service);
  if (sampling.min_tokens > sampling.max_tokens) {
    throw ApiError(400,
                   "`min_tokens` must not exceed `max_tokens`, which is " +
                       std::to_string(sampling.max_tokens) + ".",
                   "min_tokens");
  }
}

void check_copies(size_t num_prompts, size_t prompt_tokens, const GenerationRequest& request,
                  const Service& service) {
  const auto copies = size_t(request.num_choices);
  if (num_prompts * copies > size_t(service.engine_options.max_waiting) ||
      prompt_tokens * copies > kMaxCopiedTokens) {
    throw ApiError(400,
                   "`n` of " + std::to_string(copies) + " is too much for " +
                       std::to_string(num_prompts) + " prompts with " +
                       std::to_string(prompt_tokens) + " tokens.",
                   "n");
  }
}

}  // namespace nibble
