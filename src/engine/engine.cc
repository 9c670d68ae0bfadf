#include "engine/engine.h"

#include <algorithm>
#include <deque>
#include <random>

#include "base/error.h"
#include "base/log.h"
#include "base/queue.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"

namespace nibble {
namespace {

double seconds_between(Clock::time_point first, Clock::time_point last) {
  return std::chrono::duration<double>(last - first).count();
}

// Rows of logits in one step: one a sequence, and room for prompt log-probabilities.
int max_logit_rows(const EngineOptions& options) {
  constexpr int kPromptLogprobRows = 64;
  return std::max(options.max_num_seqs,
                  std::min(options.max_num_batched_tokens, kPromptLogprobRows));
}

}  // namespace

int Engine::logit_rows(const EngineOptions& options) {
  return max_logit_rows(options);
}

class Engine::State {
 public:
  State(GlmFlash& model, EngineOptions options);
  ~State();

  std::shared_ptr<TokenStream> submit(Request request);
  bool step();
  void run();
  std::span<const KvLayer> caches() const { return caches_; }
  int vocab_size() const { return model_.config().vocab; }

  const EngineOptions options;
  EngineMetrics metrics;
  std::atomic<bool> healthy{true};
  std::atomic<bool> stopping{false};
  std::atomic<bool> draining{false};
  std::atomic<bool> reset_prefixes{false};
  BoundedQueue<std::unique_ptr<Sequence>> incoming;

 private:
  void check(const Request& request) const;
  // A sequence's part of a step whose results have not been read.
  struct Awaited {
    Sequence* sequence = nullptr;  // nullptr: it ended in the meantime
    bool samples = false;
    int position = 0;  // of the token that is chosen
    int first_logit_row = 0;
    int num_prompt_logits = 0;
  };
  using StepResults = std::vector<Awaited>;

  void admit_requests();
  void drop_cancelled();
  bool must_wait() const;
  void begin_step(const Batch& batch);
  void finish_step();
  void publish(const StepResults& step);
  void publish_prompt_logprobs(const Awaited& awaited);
  void publish_token(const Awaited& awaited);
  void finish(Sequence& sequence, Finish reason);
  void finish_all(FinishReason reason, const std::string& error);
  void update_gauges();

  GlmFlash& model_;
  Sampler sampler_;
  Scheduler scheduler_;
  void* cache_memory_ = nullptr;
  std::vector<KvLayer> caches_;
  std::deque<StepResults> steps_;  // begun and not finished, at most two
  std::atomic<uint64_t> num_submitted_{0};
  std::atomic<int64_t> num_incoming_{0};  // submitted and not yet the scheduler's
};

Engine::State::State(GlmFlash& model, EngineOptions o)
    : options(std::move(o)),
      incoming(size_t(options.max_waiting)),
      model_(model),
      sampler_(model.backend(), max_logit_rows(options), options.max_logprobs, model.config().vocab,
               options.eos_token_ids),
      scheduler_({.max_num_seqs = options.max_num_seqs,
                  .max_num_batched_tokens = options.max_num_batched_tokens,
                  .max_logit_rows = max_logit_rows(options),
                  .page_size = options.page_size,
                  .num_pages = options.num_pages,
                  .prefix_caching = options.prefix_caching,
                  .expanded_tokens = model.backend().expanded_tokens(),
                  .chosen = sampler_.chosen()}) {
  CHECK(model.max_rows() >= options.max_num_batched_tokens);
  CHECK(model.max_logit_rows() >= max_logit_rows(options));
  if (options.num_pages * options.page_size < options.max_model_len) {
    throw Error("the cache holds " + std::to_string(options.num_pages * options.page_size) +
                " tokens, less than one request of --max-model-len " +
                std::to_string(options.max_model_len) +
                "; lower it, or give the cache more memory");
  }
  const GlmConfig& config = model.config();
  KvLayer layer{.format = options.kv_format,
                .page_size = options.page_size,
                .width = config.mla().record_dim(),
                .latent = config.mla().latent_dim};
  // One block: on a card each allocation of its own would be rounded up to megabytes.
  const int64_t layer_bytes = (options.num_pages * kv_page_bytes(layer) + 255) / 256 * 256;
  cache_memory_ = model.backend().allocate(size_t(config.num_layers * layer_bytes));
  for (int l = 0; l < config.num_layers; ++l) {
    layer.data = static_cast<uint8_t*>(cache_memory_) + l * layer_bytes;
    caches_.push_back(layer);
  }
  metrics.num_pages = options.num_pages;
}

Engine::State::~State() {
  try {
    for (; !steps_.empty(); steps_.pop_front()) sampler_.finish();
  } catch (const std::exception&) {  // a lost device, which run() has reported
  }
  model_.backend().free(cache_memory_);
}

void Engine::State::check(const Request& request) const {
  const int length = int(request.prompt.size());
  if (length == 0) throw ApiError(400, "the prompt is empty", "prompt");
  if (length >= options.max_model_len) {
    throw ApiError(400,
                   "This model's maximum context length is " +
                       std::to_string(options.max_model_len) +
                       " tokens. However, your prompt has " + std::to_string(length) +
                       " tokens. Please reduce its length.",
                   "prompt", "context_length_exceeded");
  }
  const int vocab = model_.config().vocab;
  const auto check_ids = [&](const std::vector<int32_t>& ids, const char* field) {
    for (const int32_t id : ids) {
      if (id >= 0 && id < vocab) continue;
      throw ApiError(400,
                     "token id " + std::to_string(id) + " is out of the vocabulary of " +
                         std::to_string(vocab),
                     field);
    }
  };
  check_ids(request.prompt, "prompt");
  check_ids(request.sampling.stop_token_ids, "stop_token_ids");
  check_ids(request.sampling.allowed_token_ids, "allowed_token_ids");
  for (const auto& [id, bias] : request.sampling.logit_bias) check_ids({id}, "logit_bias");
  CHECK(request.sampling.logprobs <= options.max_logprobs);
  CHECK(request.sampling.prompt_logprobs <= options.max_logprobs);
}

std::shared_ptr<TokenStream> Engine::State::submit(Request request) {
  check(request);
  if (!healthy || stopping) throw ApiError(503, "the engine is shutting down");
  auto sequence = std::make_unique<Sequence>();
  sequence->stream = std::make_shared<TokenStream>();
  sequence->tokens = request.prompt;
  sequence->num_prompt = int(request.prompt.size());
  sequence->max_length = int(
      std::min<int64_t>(int64_t(sequence->num_prompt) + std::max(1, request.sampling.max_tokens),
                        options.max_model_len));
  const uint64_t number = num_submitted_.fetch_add(1);
  sequence->seed = request.sampling.seed.value_or(options.seed * 0x100000001b3u + number);
  sequence->request = std::move(request);
  sequence->arrival = Clock::now();
  auto stream = sequence->stream;
  num_incoming_.fetch_add(1);
  const bool room = metrics.num_requests_waiting.load() < options.max_waiting;
  if (!room || !incoming.try_push(std::move(sequence))) {
    num_incoming_.fetch_sub(1);
    throw ApiError(503, "too many requests are waiting; try again later");
  }
  return stream;
}

// Where operations return before they are done, a step begins before the results of the one before
// it are read: its tokens stay with the backend. What ends by a stop id is noticed a step late; the
// row that it has in that step is computed for nothing.
bool Engine::State::step() {
  admit_requests();
  drop_cancelled();
  if (must_wait()) finish_step();
  const Batch& batch = scheduler_.next_batch();
  update_gauges();
  const bool begins = batch.rows() > 0;
  if (begins) begin_step(batch);
  const bool works = !steps_.empty();
  const size_t ahead = begins && model_.backend().runs_behind() ? 1 : 0;
  while (steps_.size() > ahead) finish_step();
  return works;
}

// Penalties are made of the tokens so far.
bool Engine::State::must_wait() const {
  return !steps_.empty() && std::ranges::any_of(steps_.back(), [](const Awaited& awaited) {
    return awaited.sequence != nullptr && awaited.sequence->has_penalties();
  });
}

void Engine::State::begin_step(const Batch& batch) {
  const Tensor logits = model_.forward(batch, caches_);
  sampler_.begin(logits, batch, scheduler_.scheduled());
  StepResults step;
  for (Sequence* sequence : scheduler_.scheduled()) {
    step.push_back({.sequence = sequence,
                    .samples = sequence->samples,
                    .position = int(sequence->tokens.size()),
                    .first_logit_row = sequence->first_logit_row,
                    .num_prompt_logits = sequence->num_prompt_logits});
  }
  steps_.push_back(std::move(step));
  scheduler_.commit();
}

void Engine::State::finish_step() {
  sampler_.finish();
  publish(steps_.front());
  steps_.pop_front();
  update_gauges();
  if (options.on_step) options.on_step();
}

void Engine::State::admit_requests() {
  for (auto& sequence : incoming.pop_all()) {
    scheduler_.add(std::move(sequence));
    num_incoming_.fetch_sub(1);
  }
  if (reset_prefixes.exchange(false)) scheduler_.clear_prefix_cache();
}

void Engine::State::drop_cancelled() {
  bool dropped = false;
  for (Sequence* sequence : scheduler_.all()) {
    if (!sequence->stream->cancelled()) continue;
    finish(*sequence, {.reason = sequence->stream->cancel_reason()});
    dropped = true;
  }
  if (dropped && options.on_step) options.on_step();
}

void Engine::State::publish(const StepResults& step) {
  int64_t prompt_tokens = 0, generated = 0;
  for (const Awaited& awaited : step) {
    if (awaited.sequence == nullptr) continue;
    publish_prompt_logprobs(awaited);
    if (!awaited.samples) continue;
    const Sequence& sequence = *awaited.sequence;
    if (sequence.first_token == Clock::time_point()) prompt_tokens += sequence.num_prompt;
    ++generated;
    publish_token(awaited);
  }
  metrics.prompt_tokens.fetch_add(prompt_tokens);
  metrics.generation_tokens.fetch_add(generated);
  if (generated > 0) metrics.iteration_tokens.observe(double(prompt_tokens + generated));
}

void Engine::State::publish_prompt_logprobs(const Awaited& awaited) {
  Sequence& sequence = *awaited.sequence;
  for (int i = 0; i < awaited.num_prompt_logits; ++i) {
    sequence.prompt_logprobs.push_back(sampler_.logprobs(awaited.first_logit_row + i));
  }
  const bool first = awaited.samples && awaited.position == sequence.num_prompt;
  if (first && !sequence.prompt_logprobs.empty()) {
    sequence.stream->push_prompt_logprobs(sequence.prompt_logprobs);
  }
}

void Engine::State::publish_token(const Awaited& awaited) {
  Sequence& sequence = *awaited.sequence;
  const SamplingParams& p = sequence.request.sampling;
  const Clock::time_point now = Clock::now();
  if (sequence.first_token == Clock::time_point()) {
    sequence.first_token = now;
    metrics.time_to_first_token.observe(seconds_between(sequence.arrival, now));
  } else {
    metrics.inter_token_latency.observe(seconds_between(sequence.last_token, now));
  }
  sequence.last_token = now;

  const int logit_row = awaited.first_logit_row + awaited.num_prompt_logits;
  const int32_t id = sampler_.token(logit_row);
  const bool may_stop = awaited.position - sequence.num_prompt >= p.min_tokens;
  scheduler_.set_token(sequence, awaited.position, id);
  if (p.presence_penalty != 0 || p.frequency_penalty != 0) ++sequence.output_counts[id];
  Token token{.id = id};
  if (p.logprobs >= 0) token.logprobs = sampler_.logprobs(logit_row);
  if (may_stop && sampler_.is_stop(sequence, id)) {
    return finish(sequence, {.reason = FinishReason::kStop, .stop_token = std::move(token)});
  }
  sequence.stream->push(std::move(token));
  if (awaited.position + 1 >= sequence.max_length) {
    finish(sequence, {.reason = FinishReason::kLength});
  }
}

void Engine::State::finish(Sequence& sequence, Finish reason) {
  const std::unique_ptr<Sequence> owned = scheduler_.remove(&sequence);
  for (StepResults& step : steps_) {
    for (Awaited& awaited : step) {
      if (awaited.sequence == &sequence) awaited.sequence = nullptr;
    }
  }
  const Clock::time_point now = Clock::now();
  metrics.request_success[size_t(reason.reason)].fetch_add(1);
  if (sequence.first_token != Clock::time_point()) {
    const double decode = seconds_between(sequence.first_token, now);
    const int num_output = sequence.num_known() - sequence.num_prompt;
    metrics.e2e_request_latency.observe(seconds_between(sequence.arrival, now));
    metrics.request_queue_time.observe(seconds_between(sequence.arrival, sequence.first_scheduled));
    metrics.request_inference_time.observe(seconds_between(sequence.first_scheduled, now));
    metrics.request_prefill_time.observe(
        seconds_between(sequence.first_scheduled, sequence.first_token));
    metrics.request_decode_time.observe(decode);
    metrics.request_prompt_tokens.observe(sequence.num_prompt);
    metrics.request_generation_tokens.observe(num_output);
    metrics.request_params_max_tokens.observe(sequence.request.sampling.max_tokens);
    if (num_output > 1) {
      metrics.request_time_per_output_token.observe(decode / (num_output - 1));
    }
  }
  // Gauges first: whoever sees the end of the stream may look at them.
  update_gauges();
  sequence.stream->finish(std::move(reason));
}

void Engine::State::finish_all(FinishReason reason, const std::string& error) {
  admit_requests();
  for (Sequence* sequence : scheduler_.all()) {
    finish(*sequence, {.reason = reason, .error = error});
  }
  if (options.on_step) options.on_step();
}

void Engine::State::update_gauges() {
  metrics.num_requests_running = scheduler_.num_running();
  metrics.num_requests_waiting = scheduler_.num_waiting() + num_incoming_.load();
  metrics.num_pages_used = scheduler_.pool().num_held();
  metrics.num_preemptions = scheduler_.num_preemptions();
  metrics.prefix_cache_queries = scheduler_.prefix_queries();
  metrics.prefix_cache_hits = scheduler_.prefix_hits();
}

void Engine::State::run() {
  try {
    while (!stopping || draining) {
      if (step()) continue;
      if (stopping) break;
      incoming.wait();
    }
    finish_all(FinishReason::kAbort, "");
  } catch (const std::exception& e) {
    log_error(std::string("the engine failed: ") + e.what());
    healthy = false;
    incoming.close();
    finish_all(FinishReason::kError, e.what());
  }
  healthy = false;
}

Engine::Engine(GlmFlash& model, EngineOptions options)
    : state_(std::make_unique<State>(model, std::move(options))) {}

Engine::~Engine() = default;

std::shared_ptr<TokenStream> Engine::submit(Request request) {
  return state_->submit(std::move(request));
}

void Engine::run() {
  state_->run();
}

void Engine::stop(bool drain) {
  state_->draining = drain;
  state_->stopping = true;
  state_->incoming.close();
}

bool Engine::step() {
  return state_->step();
}

std::span<const KvLayer> Engine::caches() const {
  return state_->caches();
}

bool Engine::healthy() const {
  return state_->healthy;
}

const EngineOptions& Engine::options() const {
  return state_->options;
}

int Engine::vocab_size() const {
  return state_->vocab_size();
}

const EngineMetrics& Engine::metrics() const {
  return state_->metrics;
}

void Engine::reset_prefix_cache() {
  state_->reset_prefixes = true;
  state_->incoming.wake();
}

}  // namespace nibble
