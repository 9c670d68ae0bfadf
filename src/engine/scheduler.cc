#include "engine/scheduler.h"

#include <algorithm>

#include "base/check.h"

namespace nibble {
Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), pool_(options.num_pages), prefix_cache_(pool_, options.page_size) {
  CHECK(options.max_logit_rows >= options.max_num_seqs);
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  waiting_.push_back(std::move(sequence));
}

const Batch& Scheduler::next_batch() {
  batch_.clear();
  batch_.chosen = options_.chosen;
  scheduled_.clear();
  token_budget_ = options_.max_num_batched_tokens;
  logit_budget_ = options_.max_logit_rows;
  preempted_ = false;
  for (const auto& sequence : running_) sequence->num_rows = 0;

  schedule_running(/*decodes=*/true);
  schedule_running(/*decodes=*/false);
  if (!preempted_) admit_waiting();

  // A sequence scheduled early in this step may have been preempted by a later one.
  std::erase_if(scheduled_, [](const Sequence* s) { return s->num_rows == 0; });
  for (Sequence* sequence : scheduled_) append_to_batch(*sequence);
  return batch_;
}

void Scheduler::schedule_running(bool decodes) {
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.is_complete()) continue;
    if ((sequence.num_uncomputed() == 1) == decodes) schedule(sequence);
  }
}

void Scheduler::admit_waiting() {
  while (!waiting_.empty() && num_running() < options_.max_num_seqs && token_budget_ > 0) {
    Sequence& sequence = *waiting_.front();
    CHECK(sequence.num_known() == int(sequence.tokens.size()));
    if (!find_prefix(sequence)) return;
    if (sequence.first_scheduled == Clock::time_point()) sequence.first_scheduled = Clock::now();
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
    if (!schedule(sequence)) return;
  }
}

// Gives a waiting sequence the pages that others have already computed. False, and nothing held,
// when the rest of its tokens would not fit beside the running sequences.
bool Scheduler::find_prefix(Sequence& sequence) {
  const int length = int(sequence.tokens.size());
  const bool search = options_.prefix_caching && sequence.request.use_prefix_cache &&
                      !sequence.wants_prompt_logprobs();
  if (search) {
    // One token at least is computed: its logits choose the next.
    sequence.pages = prefix_cache_.find(sequence.request.cache_salt, sequence.tokens,
                                        (length - 1) / options_.page_size, sequence.page_keys);
  }
  const int missing = pages_for(length) - int(sequence.pages.size());
  if (missing > pool_.num_available()) {
    release_pages(sequence);
    return false;
  }
  sequence.num_computed = int(sequence.pages.size()) * options_.page_size;
  if (sequence.num_output() == 0) {
    sequence.num_expanded = sequence.num_uncomputed() >= options_.expanded_tokens ? length : 0;
  }
  if (search) {
    prefix_queries_ += length;
    prefix_hits_ += sequence.num_computed;
  }
  if (sequence.num_output() == 0) sequence.stream->set_cached_tokens(sequence.num_computed);
  return true;
}

// Rows that the budgets leave for the sequence in this step.
int Scheduler::rows_for(const Sequence& sequence) const {
  if (logit_budget_ == 0) return 0;
  int rows = std::min(sequence.num_uncomputed(), token_budget_);
  if (sequence.num_computed < sequence.num_expanded) {
    rows = std::min(rows, sequence.num_expanded - sequence.num_computed);
  }
  const bool in_prompt = sequence.num_computed < sequence.num_prompt;
  if (sequence.wants_prompt_logprobs() && in_prompt) rows = std::min(rows, logit_budget_);
  return rows;
}

bool Scheduler::schedule(Sequence& sequence) {
  const int rows = rows_for(sequence);
  if (rows == 0 || !reserve_pages(sequence, sequence.num_computed + rows)) return false;
  sequence.num_rows = rows;
  sequence.samples = rows == sequence.num_uncomputed();
  token_budget_ -= rows;
  logit_budget_ -= sequence.wants_prompt_logprobs() ? rows : int(sequence.samples);
  scheduled_.push_back(&sequence);
  return true;
}

// Extends the page table to `num_tokens`, at the cost of younger sequences if need be. False when
// the sequence itself was the youngest and had to give way.
bool Scheduler::reserve_pages(Sequence& sequence, int num_tokens) {
  while (int(sequence.pages.size()) < pages_for(num_tokens)) {
    if (pool_.num_available() > 0) {
      sequence.pages.push_back(pool_.allocate());
      continue;
    }
    Sequence& youngest = *running_.back();
    preempt(youngest);
    if (&youngest == &sequence) return false;
  }
  return true;
}

void Scheduler::preempt(Sequence& sequence) {
  CHECK(running_.back().get() == &sequence);
  token_budget_ += sequence.num_rows;
  sequence.num_rows = 0;
  sequence.num_computed = 0;
  release_pages(sequence);
  waiting_.push_front(std::move(running_.back()));
  running_.pop_back();
  preempted_ = true;
  ++num_preemptions_;
}

void Scheduler::release_pages(Sequence& sequence) {
  // The last page first: of an idle prefix, its end is evicted before its beginning.
  for (size_t i = sequence.pages.size(); i-- > 0;) pool_.release(sequence.pages[i]);
  sequence.pages.clear();
  sequence.page_keys.clear();
}

void Scheduler::append_to_batch(Sequence& sequence) {
  sequence.first_row = batch_.rows();
  batch_.segments.push_back({.first_row = sequence.first_row,
                             .num_rows = sequence.num_rows,
                             .context = sequence.num_computed,
                             .first_page = int(batch_.pages.size()),
                             .expanded = sequence.num_computed < sequence.num_expanded});
  batch_.pages.insert(batch_.pages.end(), sequence.pages.begin(), sequence.pages.end());
  const auto first = sequence.tokens.begin() + sequence.num_computed;
  batch_.tokens.insert(batch_.tokens.end(), first, first + sequence.num_rows);

  // Row i's logits speak of token num_computed + i + 1: of a prompt token that is asked for, or of
  // the next token, behind the last row.
  sequence.first_logit_row = int(batch_.logit_rows.size());
  for (int i = 0; i < sequence.num_rows; ++i) {
    const bool last = i + 1 == sequence.num_rows;
    const bool in_prompt = sequence.num_computed + i + 1 < sequence.num_prompt;
    const bool asked = sequence.wants_prompt_logprobs() && in_prompt &&
                       int(sequence.prompt_logprobs.size()) <= sequence.num_computed + i;
    if (asked || (last && sequence.samples)) batch_.logit_rows.push_back(sequence.first_row + i);
  }
  sequence.num_prompt_logits =
      int(batch_.logit_rows.size()) - sequence.first_logit_row - int(sequence.samples);
}

void Scheduler::commit() {
  for (Sequence* sequence : scheduled_) {
    sequence->num_computed += sequence->num_rows;
    publish_full_pages(*sequence);
    if (!sequence->samples) continue;
    const int row = sequence->first_logit_row + sequence->num_prompt_logits;
    sequence->tokens.push_back(-1 - row);
  }
}

void Scheduler::set_token(Sequence& sequence, int position, int32_t token) {
  CHECK(sequence.num_known() == position);
  sequence.tokens[size_t(position)] = token;
  publish_full_pages(sequence);
}

// Whose tokens are known. That a step may still be computing them does no harm: whoever finds them
// uses them in a later one.
void Scheduler::publish_full_pages(Sequence& sequence) {
  if (!options_.prefix_caching || !sequence.request.use_prefix_cache) return;
  const int full_pages = std::min(sequence.num_computed, sequence.num_known()) / options_.page_size;
  for (int i = int(sequence.page_keys.size()); i < full_pages; ++i) {
    const std::span<const int32_t> tokens(sequence.tokens.data() + i * options_.page_size,
                                          size_t(options_.page_size));
    const PrefixCache::Key previous = i == 0 ? prefix_cache_.root(sequence.request.cache_salt)
                                             : sequence.page_keys[size_t(i) - 1];
    sequence.page_keys.push_back(prefix_cache_.next(previous, tokens));
    prefix_cache_.publish(sequence.pages[size_t(i)], sequence.page_keys.back(), tokens);
  }
}

std::unique_ptr<Sequence> Scheduler::remove(Sequence* sequence) {
  release_pages(*sequence);
  const auto is_it = [&](const std::unique_ptr<Sequence>& s) { return s.get() == sequence; };
  const auto take = [&](auto& list) {
    const auto found = std::find_if(list.begin(), list.end(), is_it);
    if (found == list.end()) return std::unique_ptr<Sequence>();
    auto taken = std::move(*found);
    list.erase(found);
    return taken;
  };
  std::erase(scheduled_, sequence);
  auto taken = take(running_);
  return taken ? std::move(taken) : take(waiting_);
}

std::vector<Sequence*> Scheduler::all() const {
  std::vector<Sequence*> sequences;
  for (const auto& sequence : running_) sequences.push_back(sequence.get());
  for (const auto& sequence : waiting_) sequences.push_back(sequence.get());
  return sequences;
}

}  // namespace nibble
