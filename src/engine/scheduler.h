// Scheduler: which sequences, and how many tokens of each, form the next step. First come, first
// served; running decodes first, then prefill chunks up to the token budget. When pages run out,
// the youngest running sequence gives its pages back and is computed again later.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "backend/batch.h"
#include "engine/page_pool.h"
#include "engine/prefix_cache.h"
#include "engine/sequence.h"

namespace nibble {

struct SchedulerOptions {
  int max_num_seqs = 0;
  int max_num_batched_tokens = 0;
  int max_logit_rows = 0;  // >= max_num_seqs
  int page_size = 0;
  int64_t num_pages = 0;
  bool prefix_caching = true;
  // A prompt with so many tokens to compute is computed with keys and values expanded. All its
  // chunks are, however long, and what follows the prompt is not, since how chunks are cut depends
  // on the other sequences and a token's bits must not.
  int expanded_tokens = 256;
  const int32_t* chosen = nullptr;  // Batch::chosen
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  void add(std::unique_ptr<Sequence> sequence);

  // The batch of the next step; empty when nothing waits or runs.
  const Batch& next_batch();
  // The sequences with rows in that batch, in row order.
  const std::vector<Sequence*>& scheduled() const { return scheduled_; }

  // The step is on its way: later ones find the scheduled rows computed. A sequence that samples
  // gets one more token, not yet known.
  void commit();
  // The token at `position` has become known.
  void set_token(Sequence& sequence, int position, int32_t token);

  // Takes a sequence out and releases its pages.
  std::unique_ptr<Sequence> remove(Sequence* sequence);

  // All sequences, running and waiting.
  std::vector<Sequence*> all() const;
  int num_running() const { return int(running_.size()); }
  int num_waiting() const { return int(waiting_.size()); }
  int64_t num_preemptions() const { return num_preemptions_; }
  int64_t prefix_queries() const { return prefix_queries_; }  // tokens
  int64_t prefix_hits() const { return prefix_hits_; }        // tokens
  const PagePool& pool() const { return pool_; }
  void clear_prefix_cache() { prefix_cache_.clear(); }

 private:
  void schedule_running(bool decodes);
  void admit_waiting();
  bool find_prefix(Sequence& sequence);
  bool schedule(Sequence& sequence);
  int rows_for(const Sequence& sequence) const;
  bool reserve_pages(Sequence& sequence, int num_tokens);
  void preempt(Sequence& sequence);
  void release_pages(Sequence& sequence);
  void append_to_batch(Sequence& sequence);
  void publish_full_pages(Sequence& sequence);
  int pages_for(int num_tokens) const {
    return (num_tokens + options_.page_size - 1) / options_.page_size;
  }

  const SchedulerOptions options_;
  PagePool pool_;
  PrefixCache prefix_cache_;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of arrival
  std::vector<Sequence*> scheduled_;
  Batch batch_;
  int token_budget_ = 0;
  int logit_budget_ = 0;
  bool preempted_ = false;  // in this step
  int64_t num_preemptions_ = 0;
  int64_t prefix_queries_ = 0;
  int64_t prefix_hits_ = 0;
};

}  // namespace nibble
