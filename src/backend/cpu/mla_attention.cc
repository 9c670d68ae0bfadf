// Per head h with kv_b = [W_uk; W_uv]:
//   1. query = [W_uk^T q_nope | rotate(q_rope)]               units (head, panel of the latent)
//   2. latent = softmax(query . records * scale) records      tasks, see below
//   3. out = W_uv latent                                      units (head, panel of the value)
// Segments that are expanded are left to expanded_attention.cc.
//
// A task is some rows of a segment, all heads, all positions; with fewer tasks than threads it is
// cut by heads, and by spans of 512 positions. A row sums each span by itself and merges spans in
// rising order, cut or not, so that its bits depend on its own position alone.
#include "backend/cpu/mla_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace nibble {
namespace {

constexpr int64_t kQueriesPerTask = 64;    // queries, sums and records stay in the L2 cache
constexpr int64_t kQueriesPerPass = 4096;  // bounds the scratch

int64_t spans_of(int64_t positions) {
  return (positions + kAttentionSpan - 1) / kAttentionSpan;
}

}  // namespace

void MlaAttention::run(Tensor q, const Weight& kv_b, const MlaShape& shape, const Batch& batch,
                       const KvLayer& cache, const RopeTable& rope, Tensor out) {
  CHECK(kv_b.key_rows == shape.nope_dim && kv_b.rows == shape.nope_dim + shape.value_dim &&
            kv_b.count == shape.heads && kv_b.cols == shape.latent_dim,
        "%s", kv_b.name.c_str());
  Call call{.q = q,
            .out = out,
            .kv_b = kv_b,
            .shape = shape,
            .batch = batch,
            .cache = cache,
            .rope = rope,
            .attention = {.key_dim = shape.record_dim(),
                          .latent_dim = shape.latent_dim,
                          .scale = float(1 / std::sqrt(double(shape.query_dim())))},
            .attend_span = nullptr,
            .first_row = 0,
            .num_rows = 0};
  call.attend_span = span_function(workers_.attention_products(), cache.format, call.attention);
  const bool can_expand = ExpandedAttention::takes(shape);
  const int64_t most = std::max<int64_t>(1, kQueriesPerPass / shape.heads);
  for (size_t i = 0; i < batch.segments.size();) {
    const Segment& segment = batch.segments[i];
    if (can_expand && segment.expanded) {
      const RecordPages pages{cache, batch.pages.data() + segment.first_page};
      expanded_.run({q, out, kv_b, shape, segment, pages, rope});
      ++i;
      continue;
    }
    int64_t end = segment.first_row;
    for (; i < batch.segments.size() && !(can_expand && batch.segments[i].expanded); ++i) {
      end += batch.segments[i].num_rows;
    }
    for (int64_t first = segment.first_row; first < end; first += most) {
      call.first_row = first;
      call.num_rows = std::min(most, end - first);
      run_rows(call);
    }
  }
}

void MlaAttention::run_rows(const Call& call) {
  make_tasks(call);
  const MlaShape& s = call.shape;
  const int64_t queries = call.num_rows * s.heads;
  queries_.fit(size_t(queries * padded(s.record_dim())));
  latents_.fit(size_t(queries * padded(s.latent_dim)));
  const int64_t products = queries * s.latent_dim;
  workers_.run(products * s.nope_dim, [&](int thread) { make_queries(call, thread); });
  next_task_ = 0;
  const bool shared = tasks_.size() > 1;
  workers_.run(shared ? products * kAttentionBlock : 0, [&](int thread) {
    for (;;) {
      const size_t i = next_task_.fetch_add(1, std::memory_order_relaxed);
      if (i >= tasks_.size()) return;
      attend(call, tasks_[i], threads_[size_t(thread)]);
    }
  });
  if (split_spans_) {
    workers_.run(products * max_spans_, [&](int thread) {
      const Share share = workers_.share(thread, queries);
      for (int64_t i = share.first; i < share.last; ++i) merge_spans(call, i);
    });
  }
  workers_.run(products * s.value_dim, [&](int thread) { make_outputs(call, thread); });
}

// W_uk^T q of one head and a run of panels.
void MlaAttention::multiply_keys(const Call& call, int thread, int64_t head, int64_t first,
                                 int64_t last) {
  const MlaShape& s = call.shape;
  const PackedWeight& kv_b = packed(call.kv_b);
  const Kernel& kernel = workers_.kernel(kv_b.keys.first.format, call.num_rows);
  const Tensor q(call.q.row<float>(call.first_row) + head * s.query_dim(), DType::kF32,
                 call.num_rows, s.nope_dim, call.q.stride);
  const int64_t stride = padded(s.record_dim());
  workers_.multiply(thread, kernel,
                    {.w = kv_b.keys.matrix(head),
                     .first_panel = first,
                     .last_panel = last,
                     .x = workers_.make_inputs(thread, kernel, q),
                     .rows = call.num_rows,
                     .out = queries_.data() + head * stride,
                     .out_stride = s.heads * stride});
}

void MlaAttention::make_queries(const Call& call, int thread) {
  const MlaShape& s = call.shape;
  const int64_t panels = packed(call.kv_b).keys.first.count(), rows = call.num_rows;
  const Share share = workers_.share(thread, s.heads * panels, kGroupPanels);
  for (int64_t unit = share.first; unit < share.last;) {
    const int64_t h = unit / panels, panel = unit % panels;
    const int64_t last = std::min(panels, panel + share.last - unit);
    multiply_keys(call, thread, h, panel, last);
    unit += last - panel;
  }
  const Share rotated = workers_.share(thread, rows * s.heads);
  size_t segment = 0;
  for (int64_t i = rotated.first; i < rotated.last; ++i) {
    const int64_t t = i / s.heads, h = i % s.heads, row = call.first_row + t;
    const auto& segments = call.batch.segments;
    while (row >= segments[segment].first_row + segments[segment].num_rows) ++segment;
    const int64_t position = segments[segment].context + row - segments[segment].first_row;
    float* query = queries_.data() + i * padded(s.record_dim());
    call.rope.rotate(call.q.row<float>(row) + h * s.query_dim() + s.nope_dim, position,
                     query + s.latent_dim);
    for (int64_t d = s.record_dim(); d < padded(s.record_dim()); ++d) query[d] = 0;
  }
}

// Whether the threads, each taking the next task when it is done, would finish at about the same
// time with tasks cut into so many groups of heads, or there are tasks enough. Fewer groups are
// better: each reads and orders the records for itself.
bool MlaAttention::balanced(int64_t groups) {
  loads_.assign(size_t(workers_.size()), 0);
  int64_t count = 0, total = 0;
  for (const Task& task : tasks_) {
    const Segment& segment = *task.segment;
    const int64_t length = segment.context + task.last_row - segment.first_row;
    const int64_t size = split_spans_ ? kAttentionSpan : length;
    for (int64_t first = 0; first < length; first += size) {
      const int64_t cost = (task.last_row - task.first_row) * std::min(size, length - first);
      for (int64_t g = 0; g < groups; ++g, ++count) {
        *std::min_element(loads_.begin(), loads_.end()) += cost;
      }
      total += cost * groups;
    }
  }
  const int64_t last = *std::max_element(loads_.begin(), loads_.end());
  return count >= 4 * workers_.size() || last * workers_.size() * 9 <= total * 10;
}

// Tasks in order of falling cost within a segment, so that the last to be taken are small.
void MlaAttention::make_tasks(const Call& call) {
  const MlaShape& s = call.shape;
  const int64_t rows_at_once = std::max<int64_t>(1, kQueriesPerTask / s.heads);
  const int64_t threads = workers_.size();
  tasks_.clear();
  max_spans_ = 0;
  for (const Segment& segment : call.batch.segments) {
    const int64_t begin = std::max<int64_t>(segment.first_row, call.first_row);
    const int64_t end =
        std::min<int64_t>(segment.first_row + segment.num_rows, call.first_row + call.num_rows);
    for (int64_t last = end; last > begin; last -= rows_at_once) {
      const int64_t spans = spans_of(segment.context + last - segment.first_row);
      tasks_.push_back({.segment = &segment,
                        .first_row = std::max(begin, last - rows_at_once),
                        .last_row = last,
                        .last_head = s.heads,
                        .last_span = spans});
      max_spans_ = std::max(max_spans_, spans);
    }
  }
  const int64_t whole = int64_t(tasks_.size());
  split_spans_ = whole < 2 * threads && threads > 1 && max_spans_ > 1;
  if (whole >= 2 * threads) return;
  if (split_spans_) {
    partials_.fit(size_t(call.num_rows * s.heads * max_spans_ * (padded(s.latent_dim) + 16)));
  }
  int64_t groups = 1;
  while (!balanced(groups) && groups < s.heads) ++groups;
  for (int64_t i = 0; i < whole; ++i) {
    const Task task = tasks_[size_t(i)];
    const int64_t pieces = split_spans_ ? task.last_span : 1;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      for (int64_t g = 0; g < groups; ++g) {
        Task part = task;
        part.first_head = int(s.heads * g / groups);
        part.last_head = int(s.heads * (g + 1) / groups);
        if (split_spans_) part.first_span = piece, part.last_span = piece + 1;
        if (piece == 0 && g == 0) {
          tasks_[size_t(i)] = part;
        } else {
          tasks_.push_back(part);
        }
      }
    }
  }
}

AttentionSums MlaAttention::partial(const Call& call, int64_t query, int64_t span) const {
  const int64_t stride = padded(call.shape.latent_dim);
  float* at = partials_.data() + (query * max_spans_ + span) * (stride + 16);
  return {.top = at + stride, .sum = at + stride + 1, .values = at};
}

void MlaAttention::attend(const Call& call, const Task& task, Thread& memory) {
  const MlaShape& s = call.shape;
  const int64_t heads = task.last_head - task.first_head;
  const int64_t count = (task.last_row - task.first_row) * heads;
  const int64_t stride = padded(s.record_dim()), latent_stride = padded(s.latent_dim);
  const AttentionScratch scratch{
      .records = memory.records.fit(size_t(kAttentionBlock * stride)),
      .scores = memory.scores.fit(size_t(count * kAttentionBlock)),
      .factors = memory.factors.fit(size_t(count)),
      .halves = memory.halves.fit(size_t(count * (s.record_dim() + kAttentionBlock) +
                                         kAttentionBlock * kAttentionValueColumns))};
  float* tops = memory.tops.fit(size_t(4 * count));
  float* values = memory.values.fit(size_t(2 * count * latent_stride));
  const AttentionSums total{.top = tops, .sum = tops + count, .values = values};
  const AttentionSums more{
      .top = tops + 2 * count, .sum = tops + 3 * count, .values = values + count * latent_stride};

  const float** rows = memory.rows.fit(size_t(count));
  int64_t* positions = memory.positions.fit(size_t(count));
  const int64_t first_query = (task.first_row - call.first_row) * s.heads + task.first_head;
  const auto query_of = [&](int64_t i) { return first_query + i / heads * s.heads + i % heads; };
  for (int64_t i = 0; i < count; ++i) {
    rows[i] = queries_.data() + query_of(i) * stride;
    positions[i] = task.segment->context + task.first_row + i / heads - task.segment->first_row;
  }
  const AttentionQueries queries{.rows = rows, .positions = positions, .count = int(count)};
  const RecordPages pages{call.cache, call.batch.pages.data() + task.segment->first_page};
  const int64_t length = positions[count - 1] + 1;
  for (int64_t span = task.first_span; span < task.last_span; ++span) {
    const AttentionSums& sums = span == task.first_span ? total : more;
    call.attend_span(queries, pages, span * kAttentionSpan,
                     std::min(length, (span + 1) * kAttentionSpan), call.attention, scratch, sums);
    for (int64_t i = 0; i < count; ++i) {
      if (span > task.first_span) {
        merge_sums(total, i, more, i, s.latent_dim);
      } else if (split_spans_) {
        const AttentionSums to = partial(call, query_of(i), span);
        *to.top = total.top[i];
        *to.sum = total.sum[i];
        std::memcpy(to.values, total.values + i * latent_stride,
                    size_t(latent_stride) * sizeof(float));
      }
    }
  }
  if (split_spans_) return;
  for (int64_t i = 0; i < count; ++i) {
    finish_sums(total, i, s.latent_dim, latents_.data() + query_of(i) * latent_stride);
  }
}

void MlaAttention::merge_spans(const Call& call, int64_t query) {
  const int64_t row = call.first_row + query / call.shape.heads;
  const auto& segments = call.batch.segments;
  size_t segment = 0;
  while (row >= segments[segment].first_row + segments[segment].num_rows) ++segment;
  const int64_t position = segments[segment].context + row - segments[segment].first_row;
  const AttentionSums total = partial(call, query, 0);
  for (int64_t span = 1; span < spans_of(position + 1); ++span) {
    merge_sums(total, 0, partial(call, query, span), 0, call.shape.latent_dim);
  }
  finish_sums(total, 0, call.shape.latent_dim,
              latents_.data() + query * padded(call.shape.latent_dim));
}

void MlaAttention::make_outputs(const Call& call, int thread) {
  const MlaShape& s = call.shape;
  const PackedWeight& w = packed(call.kv_b);
  const Kernel& kernel = workers_.kernel(w.panels.first.format, call.num_rows);
  const int64_t panels = w.panels.first.count(), stride = padded(s.latent_dim);
  const Share share = workers_.share(thread, s.heads * panels, kGroupPanels);
  for (int64_t unit = share.first; unit < share.last;) {
    const int64_t h = unit / panels, panel = unit % panels;
    const PanelRun run =
        panel_run(w, w.panels, h, panel, std::min(panels, panel + share.last - unit));
    const Tensor latents(latents_.data() + h * stride, DType::kF32, call.num_rows, s.latent_dim,
                         s.heads * stride);
    workers_.multiply(thread, kernel,
                      {.w = w.panels.matrix(h),
                       .first_panel = panel,
                       .last_panel = run.last,
                       .x = workers_.make_inputs(thread, kernel, latents, run.factors),
                       .rows = call.num_rows,
                       .out = call.out.row<float>(call.first_row) + h * s.value_dim,
                       .out_stride = call.out.stride});
    unit += run.last - panel;
  }
}

}  // namespace nibble
