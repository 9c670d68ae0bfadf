#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <numeric>

namespace nibble {
namespace {

class SchedulerTest : public testing::Test {
 protected:
  void make(SchedulerOptions options) {
    options.page_size = 4;
    options.max_logit_rows = std::max(options.max_num_seqs, options.max_logit_rows);
    scheduler_ = std::make_unique<Scheduler>(options);
  }
  Sequence* add(int prompt, int first_token = 0, int prompt_logprobs = -1) {
    auto sequence = std::make_unique<Sequence>();
    sequence->stream = std::make_shared<TokenStream>();
    sequence->tokens.resize(size_t(prompt));
    std::iota(sequence->tokens.begin(), sequence->tokens.end(), first_token);
    sequence->num_prompt = prompt;
    sequence->request.sampling.prompt_logprobs = prompt_logprobs;
    Sequence* raw = sequence.get();
    scheduler_->add(std::move(sequence));
    return raw;
  }
  // One step in which every sampled sequence gets token 7.
  const Batch& step() {
    const Batch& batch = scheduler_->next_batch();
    scheduler_->commit();
    for (Sequence* s : scheduler_->scheduled()) {
      if (s->samples) scheduler_->set_token(*s, s->num_known(), 7);
    }
    return batch;
  }
  std::vector<int> rows() {
    std::vector<int> rows;
    for (const Sequence* s : scheduler_->scheduled()) rows.push_back(s->num_rows);
    return rows;
  }
  std::unique_ptr<Scheduler> scheduler_;
};

TEST_F(SchedulerTest, WithoutSequencesABatchIsEmpty) {
  make({.max_num_seqs = 2, .max_num_batched_tokens = 8, .num_pages = 4});
  EXPECT_EQ(scheduler_->next_batch().rows(), 0);
}

TEST_F(SchedulerTest, PrefillIsCutToTheBudgetAndDecodesComeFirst) {
  make({.max_num_seqs = 4, .max_num_batched_tokens = 8, .num_pages = 100});
  Sequence* a = add(5, 100);
  EXPECT_EQ(step().rows(), 5);
  EXPECT_EQ(scheduler_->next_batch().logit_rows, std::vector<int32_t>{0});
  Sequence* b = add(20, 200);
  const Batch& mixed = step();
  EXPECT_EQ(rows(), (std::vector<int>{1, 7}));
  EXPECT_EQ(mixed.segments[0].context, 5);
  EXPECT_EQ(mixed.segments[1].context, 0);
  EXPECT_EQ(mixed.logit_rows, std::vector<int32_t>{0});
  EXPECT_FALSE(b->samples);
  step();
  step();
  EXPECT_EQ(rows(), (std::vector<int>{1, 6}));
  EXPECT_TRUE(b->samples);
  EXPECT_EQ(a->num_output(), 4);
}

TEST_F(SchedulerTest, AllChunksOfALongPromptAreExpandedAndNoneOfAShortOne) {
  make({.max_num_seqs = 2, .max_num_batched_tokens = 255, .num_pages = 200});
  add(100, 1000);
  EXPECT_FALSE(step().segments[0].expanded);
  add(256, 2000);
  const Batch& first = step();
  ASSERT_EQ(rows(), (std::vector<int>{1, 254}));
  EXPECT_FALSE(first.segments[0].expanded);
  EXPECT_TRUE(first.segments[1].expanded);
  const Batch& second = step();
  ASSERT_EQ(rows(), (std::vector<int>{1, 2}));
  EXPECT_TRUE(second.segments[1].expanded);
  EXPECT_FALSE(step().segments[1].expanded);
}

TEST_F(SchedulerTest, AfterAPreemptionOnlyThePromptIsExpanded) {
  make({.max_num_seqs = 1, .max_num_batched_tokens = 300, .num_pages = 100});
  Sequence* a = add(256, 1000);
  step();
  step();
  ASSERT_EQ(a->num_output(), 2);
  a->num_computed = 0;  // as a preemption leaves it
  const Batch& again = step();
  EXPECT_EQ(rows(), std::vector<int>{256});
  EXPECT_TRUE(again.segments[0].expanded);
  const Batch& rest = step();
  EXPECT_EQ(rows(), std::vector<int>{2});
  EXPECT_FALSE(rest.segments[0].expanded);
}

TEST_F(SchedulerTest, SchedulesTokensThatAreNotKnownYet) {
  make({.max_num_seqs = 4, .max_num_batched_tokens = 100, .max_logit_rows = 9, .num_pages = 100});
  Sequence* a = add(2, 100);
  Sequence* b = add(3, 200, 1);
  Sequence* c = add(1, 300);
  c->max_length = 2;
  EXPECT_EQ(scheduler_->next_batch().logit_rows, (std::vector<int32_t>{1, 2, 3, 4, 5}));
  scheduler_->commit();
  // a's choice is the first of them, b's the fourth; c needs no more.
  EXPECT_EQ(scheduler_->next_batch().tokens, (std::vector<int32_t>{-1, -4}));
  EXPECT_EQ(scheduler_->scheduled(), (std::vector<Sequence*>{a, b}));
  scheduler_->commit();
  EXPECT_EQ(a->num_known(), 2);
  scheduler_->set_token(*a, 2, 42);
  scheduler_->set_token(*b, 3, 43);
  EXPECT_EQ(scheduler_->next_batch().tokens, (std::vector<int32_t>{-1, -2}));
  EXPECT_EQ(a->tokens, (std::vector<int32_t>{100, 101, 42, -1}));
}

TEST_F(SchedulerTest, PagesAreFoundOnceTheirTokensAreKnown) {
  make({.max_num_seqs = 4, .max_num_batched_tokens = 100, .num_pages = 100});
  Sequence* a = add(3, 0);
  scheduler_->next_batch();
  scheduler_->commit();
  scheduler_->next_batch();
  scheduler_->commit();  // the page of four tokens is full, but the fourth is not known
  EXPECT_TRUE(a->page_keys.empty());
  scheduler_->set_token(*a, 3, 3);
  EXPECT_EQ(a->page_keys.size(), 1u);
  scheduler_->set_token(*a, 4, 9);
  Sequence* b = add(6, 0);
  EXPECT_EQ(step().rows(), 1 + 2);
  EXPECT_EQ(b->stream->cached_tokens(), 4);
}

TEST_F(SchedulerTest, AtMostMaxNumSeqsRun) {
  make({.max_num_seqs = 2, .max_num_batched_tokens = 100, .num_pages = 100});
  for (int i = 0; i < 3; ++i) add(4, 10 * i);
  step();
  EXPECT_EQ(scheduler_->num_running(), 2);
  EXPECT_EQ(scheduler_->num_waiting(), 1);
}

TEST_F(SchedulerTest, TheYoungestGivesItsPagesBackAndComesAgain) {
  make({.max_num_seqs = 4, .max_num_batched_tokens = 100, .num_pages = 4, .prefix_caching = false});
  Sequence* a = add(8, 100);
  Sequence* b = add(7, 200);
  step();
  EXPECT_EQ(rows(), (std::vector<int>{8, 7}));
  step();  // a needs a third page, b has room in its second: b is preempted
  EXPECT_EQ(scheduler_->num_preemptions(), 1);
  EXPECT_EQ(scheduler_->num_waiting(), 1);
  EXPECT_EQ(rows(), (std::vector<int>{1}));
  EXPECT_EQ(b->num_computed, 0);
  scheduler_->remove(a);
  step();
  ASSERT_EQ(scheduler_->scheduled(), std::vector<Sequence*>{b});
  EXPECT_EQ(b->num_rows, 8);  // its prompt and the token it had
}

TEST_F(SchedulerTest, PagesReturnWhenASequenceLeaves) {
  make({.max_num_seqs = 4, .max_num_batched_tokens = 100, .num_pages = 10});
  Sequence* a = add(9);
  step();
  EXPECT_EQ(scheduler_->pool().num_held(), 3);
  scheduler_->remove(a);
  EXPECT_EQ(scheduler_->pool().num_held(), 0);
  EXPECT_TRUE(scheduler_->all().empty());
}

TEST_F(SchedulerTest, ACachedPrefixIsNotComputedAgain) {
  make({.max_num_seqs = 4, .max_num_batched_tokens = 100, .num_pages = 10});
  scheduler_->remove((add(9), step(), scheduler_->all()[0]));
  Sequence* b = add(12);
  const Batch& batch = step();
  EXPECT_EQ(batch.segments[0].context, 8);
  EXPECT_EQ(batch.rows(), 4);
  EXPECT_EQ(b->stream->cached_tokens(), 8);
  EXPECT_EQ(scheduler_->prefix_hits(), 8);
  scheduler_->remove(b);
  add(8);
  EXPECT_EQ(step().rows(), 4);  // the last page is computed for its logits
}

TEST_F(SchedulerTest, WaitsForPagesRatherThanThrash) {
  make({.max_num_seqs = 4, .max_num_batched_tokens = 100, .num_pages = 4, .prefix_caching = false});
  add(12, 100);
  add(8, 200);
  step();
  EXPECT_EQ(scheduler_->num_running(), 1);
  EXPECT_EQ(scheduler_->num_waiting(), 1);
}

TEST_F(SchedulerTest, PromptLogprobsAskForTheRowsBeforeTheTokens) {
  make({.max_num_seqs = 2, .max_num_batched_tokens = 100, .max_logit_rows = 3, .num_pages = 10});
  Sequence* a = add(5, 0, 2);
  EXPECT_EQ(step().logit_rows, (std::vector<int32_t>{0, 1, 2}));
  a->prompt_logprobs.resize(3);
  EXPECT_EQ(step().logit_rows, (std::vector<int32_t>{0, 1}));
  EXPECT_TRUE(a->samples);
}

}  // namespace
}  // namespace nibble
