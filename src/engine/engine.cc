#include "engine/engine.h"

#include <algorithm>
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
  void admit_requests();
  void drop_cancelled();
  void publish();
  void publish_prompt_logprobs(Sequence& sequence, int& logit_row);
  void publish_token(Sequence& sequence, int logit_row);
  void finish(Sequence& sequence, Finish reason);
  void finish_all(FinishReason reason, const std::string& error);
  void update_gauges();

  GlmFlash& model_;
  Scheduler scheduler_;
  Sampler sampler_;
  void* cache_memory_ = nullptr;
  std::vector<KvLayer> caches_;
  const Batch* batch_ = nullptr;
  std::atomic<uint64_t> num_submitted_{0};
  std::atomic<int64_t> num_incoming_{0};  // submitted and not yet the scheduler's
};

Engine::State::State(GlmFlash& model, EngineOptions o)
    : options(std::move(o)),
      incoming(size_t(options.max_waiting)),
      model_(model),
      scheduler_({.max_num_seqs = options.max_num_seqs,
                  .max_num_batched_tokens = options.max_num_batched_tokens,
                  .max_logit_rows = max_logit_rows(options),
                  .page_size = options.page_size,
                  .num_pages = options.num_pages,
                  .prefix_caching = options.prefix_caching}),
      sampler_(model.backend(), max_logit_rows(options), options.max_logprobs, model.config().vocab,
               options.eos_token_ids) {
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

bool Engine::State::step() {
  admit_requests();
  drop_cancelled();
  batch_ = &scheduler_.next_batch();
  update_gauges();
  if (batch_->rows() == 0) return false;
  const Tensor logits = model_.forward(*batch_, caches_);
  sampler_.sample(logits, *batch_, scheduler_.scheduled());
  scheduler_.commit();
  publish();
  update_gauges();
  if (options.on_step) options.on_step();
  return true;
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
    finish(*sequence, {.reason = FinishReason::kAbort});
    dropped = true;
  }
  if (dropped && options.on_step) options.on_step();
}

void Engine::State::publish() {
  int logit_row = 0;
  int64_t prompt_tokens = 0, generated = 0;
  const std::vector<Sequence*> scheduled = scheduler_.scheduled();
  for (Sequence* sequence : scheduled) {
    publish_prompt_logprobs(*sequence, logit_row);
    if (!sequence->samples) continue;
    if (sequence->first_token == Clock::time_point()) prompt_tokens += sequence->num_prompt;
    ++generated;
    publish_token(*sequence, logit_row++);
  }
  metrics.prompt_tokens.fetch_add(prompt_tokens);
  metrics.generation_tokens.fetch_add(generated);
  if (generated > 0) metrics.iteration_tokens.observe(double(prompt_tokens + generated));
}

void Engine::State::publish_prompt_logprobs(Sequence& sequence, int& logit_row) {
  const auto& rows = batch_->logit_rows;
  const int last_row = sequence.first_row + sequence.num_rows - 1;
  const auto is_prompt_row = [&] {
    return size_t(logit_row) < rows.size() && rows[size_t(logit_row)] <= last_row &&
           !(rows[size_t(logit_row)] == last_row && sequence.samples);
  };
  while (is_prompt_row()) sequence.prompt_logprobs.push_back(sampler_.logprobs(logit_row++));
  if (sequence.samples && sequence.num_output() == 0 && !sequence.prompt_logprobs.empty()) {
    sequence.stream->push_prompt_logprobs(sequence.prompt_logprobs);
  }
}

void Engine::State::publish_token(Sequence& sequence, int logit_row) {
  const SamplingParams& p = sequence.request.sampling;
  const Clock::time_point now = Clock::now();
  if (sequence.first_token == Clock::time_point()) {
    sequence.first_token = now;
    metrics.time_to_first_token.observe(seconds_between(sequence.arrival, now));
  } else {
    metrics.inter_token_latency.observe(seconds_between(sequence.last_token, now));
  }
  sequence.last_token = now;

  const int32_t id = sampler_.token(logit_row);
  const bool may_stop = sequence.num_output() >= p.min_tokens;
  sequence.tokens.push_back(id);
  if (p.presence_penalty != 0 || p.frequency_penalty != 0) ++sequence.output_counts[id];
  if (may_stop && sampler_.is_stop(sequence, id)) {
    return finish(sequence, {.reason = FinishReason::kStop, .stop_token = id});
  }
  Token token{.id = id};
  if (p.logprobs >= 0) token.logprobs = sampler_.logprobs(logit_row);
  sequence.stream->push(std::move(token));
  if (sequence.num_output() >= p.max_tokens ||
      int(sequence.tokens.size()) >= options.max_model_len) {
    finish(sequence, {.reason = FinishReason::kLength});
  }
}

void Engine::State::finish(Sequence& sequence, Finish reason) {
  const std::unique_ptr<Sequence> owned = scheduler_.remove(&sequence);
  const Clock::time_point now = Clock::now();
  metrics.request_success[size_t(reason.reason)].fetch_add(1);
  if (sequence.first_token != Clock::time_point()) {
    const double decode = seconds_between(sequence.first_token, now);
    metrics.e2e_request_latency.observe(seconds_between(sequence.arrival, now));
    metrics.request_queue_time.observe(seconds_between(sequence.arrival, sequence.first_scheduled));
    metrics.request_inference_time.observe(seconds_between(sequence.first_scheduled, now));
    metrics.request_prefill_time.observe(
        seconds_between(sequence.first_scheduled, sequence.first_token));
    metrics.request_decode_time.observe(decode);
    metrics.request_prompt_tokens.observe(sequence.num_prompt);
    metrics.request_generation_tokens.observe(sequence.num_output());
    metrics.request_params_max_tokens.observe(sequence.request.sampling.max_tokens);
    if (sequence.num_output() > 1) {
      metrics.request_time_per_output_token.observe(decode / (sequence.num_output() - 1));
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
