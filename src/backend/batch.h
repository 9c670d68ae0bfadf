// Batch: the tokens of one forward pass, any mix of prefill chunks and decodes, and what to do with
// the logits. Plain flat arrays, so that a device backend copies them as they are.
#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

struct Segment {          // consecutive rows of one sequence
  int first_row = 0;      // its first row in the batch
  int num_rows = 0;       // its tokens in this pass
  int context = 0;        // tokens already in the cache: row i has position context + i
  int first_page = 0;     // its page table: Batch::pages[first_page ...], one entry a page
  bool expanded = false;  // see Backend::mla_attention
};

struct Batch {
  std::vector<int32_t> tokens{};      // [T]; -1 - i stands for chosen[i]
  const int32_t* chosen = nullptr;    // on the backend: SampleResult::tokens of an earlier sample()
  std::vector<Segment> segments{};    // in row order, together exactly the T rows
  std::vector<int32_t> pages{};       // page tables, one after another
  std::vector<int32_t> logit_rows{};  // [R] rows whose logits the sampler needs, ascending

  int rows() const { return int(tokens.size()); }
  void clear() {
    tokens.clear();
    chosen = nullptr;
    segments.clear();
    pages.clear();
    logit_rows.clear();
  }
};

// logit' = (logit > 0 ? logit / repetition : logit * repetition) + offset. Carries penalties,
// logit_bias and bans (offset -infinity) to the draw.
struct LogitEdit {
  int32_t token = 0;
  float repetition = 1.0f;
  float offset = 0.0f;
};

struct SampleRow {           // how to choose a token from one row of logits
  float temperature = 0.0f;  // 0: the largest logit, the lowest id of equals
  int top_k = 0;             // 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float uniform = 0.0f;   // the draw: in [0, 1)
  int32_t target = -1;    // >= 0: no choice, report the log-probability of this token
  int num_logprobs = -1;  // -1: none; n: of the token and of the n best (n <= max_logprobs)
  int first_edit = 0;     // edits of this row: SampleBatch::edits[first_edit ...]
  int num_edits = 0;
};

struct SampleBatch {
  std::vector<SampleRow> rows{};   // [R]
  std::vector<LogitEdit> edits{};  // tokens of one row are distinct
  int max_logprobs = 0;            // columns of the results
};

}  // namespace nibble
