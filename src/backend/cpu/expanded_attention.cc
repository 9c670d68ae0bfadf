// Over slabs of positions, in rising order, per head with kv_b = [W_uk; W_uv]:
//   1. record of a position = [W_uv c | W_uk c | rope key]       units (block of positions, head)
//   2. sums of queries [q_nope | rotate(q_rope)] over the slab   tasks (head, rows)
//   3. out = values / sum, once a row has seen its last slab
//
// Records are BF16 where attention rounds to it, else FP32. All products with kv_b are by the
// kernel of many rows, and a row sums each span of 512 positions by itself, so that its bits do not
// depend on the chunk.
#include "backend/cpu/expanded_attention.h"

#include <cmath>
#include <cstring>

namespace nibble {
namespace {

constexpr int64_t kSlab = 2048;  // positions, a multiple of kAttentionSpan: bounds the scratch
constexpr int64_t kPositionsAtOnce = 128;  // expanded, of a head
constexpr int64_t kRowsPerTask = 64;       // queries, sums and records stay in the L2 cache
static_assert(kSlab % kAttentionSpan == 0);

}  // namespace

KvLayer ExpandedAttention::layer_of_head(int64_t head) const {
  KvLayer layer = layer_;
  layer.data = static_cast<uint8_t*>(layer.data) + head * kv_page_bytes(layer);
  return layer;
}

void ExpandedAttention::run(const Call& call) {
  const MlaShape& s = call.shape;
  const int64_t rows = call.segment.num_rows, length = call.segment.context + rows;
  const AttentionProducts products = workers_.expanded_attention_products();
  attention_ = {.key_first = s.value_dim,
                .key_dim = s.query_dim(),
                .latent_dim = s.value_dim,
                .scale = float(1 / std::sqrt(double(s.query_dim())))};
  layer_ = {.format = products == AttentionProducts::kF32 ? KvFormat::kF32 : KvFormat::kBF16,
            .page_size = int(std::min(length, kSlab)),
            .width = attention_.record_dim(),
            .latent = attention_.record_dim()};
  layer_.data = records_.fit(size_t(s.heads * kv_page_bytes(layer_)));
  attend_span_ = span_function(products, layer_.format, attention_);
  pages_.assign(size_t((length + kSlab - 1) / kSlab), 0);
  tops_.fit(size_t(s.heads * rows));
  sums_.fit(size_t(s.heads * rows));
  values_.fit(size_t(s.heads * rows * s.value_dim));
  tasks_.clear();  // in order of falling cost
  for (int64_t last = rows; last > 0; last -= std::min(last, kRowsPerTask)) {
    for (int h = 0; h < s.heads; ++h) {
      tasks_.push_back({h, std::max<int64_t>(0, last - kRowsPerTask), last});
    }
  }
  for (int64_t first = 0; first < length; first += kSlab) {
    const Slab slab{first, std::min(length, first + kSlab)};
    const int64_t products = s.heads * (slab.last - slab.first) * s.query_dim();
    workers_.run(products * s.latent_dim, [&](int thread) { expand(call, slab, thread); });
    next_task_ = 0;
    workers_.run(products * rows, [&](int thread) {
      for (;;) {
        const size_t i = next_task_.fetch_add(1, std::memory_order_relaxed);
        if (i >= tasks_.size()) return;
        attend(call, slab, tasks_[i], threads_[size_t(thread)]);
      }
    });
  }
}

void ExpandedAttention::expand(const Call& call, const Slab& slab, int thread) {
  const MlaShape& s = call.shape;
  const int64_t size = slab.last - slab.first, stride = padded(s.record_dim());
  const int64_t blocks = (size + kPositionsAtOnce - 1) / kPositionsAtOnce;
  const Share share = workers_.share(thread, blocks * s.heads);
  float* latents = threads_[size_t(thread)].latents.fit(size_t(kPositionsAtOnce * stride));
  const PackedWeight& w = packed(call.kv_b);
  const Kernel& kernel = workers_.kernel(w.panels.first.format, kWideRows);
  const bool shares_inputs = w.panels.factor_sets.empty() && w.key_rows.factor_sets.empty() &&
                             w.panels.first.format == w.key_rows.first.format;
  InputRows inputs;  // of all heads' products, where they share them
  int64_t decoded = -1;
  for (int64_t unit = share.first; unit < share.last; ++unit) {
    const int64_t first = slab.first + unit / s.heads * kPositionsAtOnce;
    if (first != decoded) {
      for (int64_t p = first; p < std::min(slab.last, first + kPositionsAtOnce); ++p) {
        decode_record_fast(call.pages.cache, call.pages.at(p), latents + (p - first) * stride);
      }
      decoded = first;
      if (shares_inputs) {
        const Tensor c(latents, DType::kF32, std::min(slab.last - first, kPositionsAtOnce),
                       s.latent_dim, stride);
        inputs = workers_.make_inputs(thread, kernel, c);
      }
    }
    expand_block(call, slab, first, unit % s.heads, thread, inputs);
  }
}

// The records of one head of the positions from `first` on.
void ExpandedAttention::expand_block(const Call& call, const Slab& slab, int64_t first,
                                     int64_t head, int thread, const InputRows& inputs) {
  const MlaShape& s = call.shape;
  const int64_t count = std::min(slab.last - first, kPositionsAtOnce), width = layer_.width;
  const int64_t stride = padded(s.record_dim());
  const float* latents = threads_[size_t(thread)].latents.data();
  float* expanded = threads_[size_t(thread)].expanded.fit(size_t(kPositionsAtOnce * width));
  const PackedWeight& w = packed(call.kv_b);
  const Tensor c(const_cast<float*>(latents), DType::kF32, count, s.latent_dim, stride);
  const auto multiply = [&](const PanelStack& stack, float* out) {
    const Kernel& kernel = workers_.kernel(stack.first.format, kWideRows);
    for (int64_t panel = 0; panel < stack.first.count();) {
      const PanelRun run = panel_run(w, stack, head, panel, stack.first.count());
      workers_.multiply(
          thread, kernel,
          {.w = stack.matrix(head),
           .first_panel = panel,
           .last_panel = run.last,
           .x = inputs.data != nullptr ? inputs
                                       : workers_.make_inputs(thread, kernel, c, run.factors),
           .rows = count,
           .out = out,
           .out_stride = width});
      panel = run.last;
    }
  };
  multiply(w.panels, expanded);
  multiply(w.key_rows, expanded + s.value_dim);
  const RecordPages pages{layer_of_head(head), pages_.data()};
  for (int64_t i = 0; i < count; ++i) {
    float* record = expanded + i * width;
    std::memcpy(record + s.value_dim + s.nope_dim, latents + i * stride + s.latent_dim,
                size_t(s.rope_dim) * sizeof(float));
    encode_record_fast(pages.cache, record, pages.at(first + i));
  }
}

void ExpandedAttention::attend(const Call& call, const Slab& slab, const Task& task,
                               Thread& memory) {
  const MlaShape& s = call.shape;
  const int64_t rows = call.segment.num_rows, count = task.last_row - task.first_row;
  const int64_t length = call.segment.context + task.last_row;  // positions that the last row sees
  if (slab.first >= length) return;
  float* queries = memory.queries.fit(size_t(count * s.query_dim()));
  const float** query_rows = memory.rows.fit(size_t(count));
  int64_t* positions = memory.positions.fit(size_t(count));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = task.first_row + i;
    const float* from = call.q.row<float>(call.segment.first_row + row) + task.head * s.query_dim();
    float* query = queries + i * s.query_dim();
    positions[i] = call.segment.context + row;
    std::memcpy(query, from, size_t(s.nope_dim) * sizeof(float));
    call.rope.rotate(from + s.nope_dim, positions[i], query + s.nope_dim);
    query_rows[i] = query;
  }
  const AttentionScratch scratch{
      .records = memory.records.fit(size_t(kAttentionBlock * padded(layer_.width))),
      .scores = memory.scores.fit(size_t(count * kAttentionBlock)),
      .factors = memory.factors.fit(size_t(count)),
      .halves = memory.halves.fit(size_t(count * (s.query_dim() + kAttentionBlock) +
                                         kAttentionBlock * kAttentionValueColumns))};
  const int64_t at = task.head * rows + task.first_row;
  const AttentionSums total{.top = tops_.data() + at,
                            .sum = sums_.data() + at,
                            .values = values_.data() + at * s.value_dim};
  float* more_sums = memory.sums.fit(size_t(count * (s.value_dim + 2)));
  const AttentionSums more{.top = more_sums + count * s.value_dim,
                           .sum = more_sums + count * (s.value_dim + 1),
                           .values = more_sums};
  const RecordPages pages{layer_of_head(task.head), pages_.data()};
  for (int64_t span = slab.first; span < std::min(slab.last, length); span += kAttentionSpan) {
    attend_span_({.rows = query_rows, .positions = positions, .count = int(count)}, pages, span,
                 std::min(std::min(slab.last, length), span + kAttentionSpan), attention_, scratch,
                 span == 0 ? total : more);
    for (int64_t i = 0; i < count && span > 0; ++i) merge_sums(total, i, more, i, s.value_dim);
  }
  for (int64_t i = 0; i < count && slab.last >= length; ++i) {
    float* out = call.out.row<float>(call.segment.first_row + task.first_row + i);
    finish_sums(total, i, s.value_dim, out + task.head * s.value_dim);
  }
}

}  // namespace nibble
