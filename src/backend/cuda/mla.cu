#include <algorithm>
#include <utility>
#include <vector>

#include "backend/cuda/mla.h"
#include "backend/cuda/mla_stages.h"
#include "base/numbers.h"

namespace nibble::cuda {
namespace {

// Rows whose partial outputs exceed this are attended to in several passes.
constexpr size_t kPartialBytes = size_t(64) << 20;
constexpr int64_t kMaxStoredAlong = 64;

template <typename T>
T* copy_to_card(const Uploads& to, const std::vector<T>& values) {
  T* const data = static_cast<T*>(to.arena.allocate(values.size() * sizeof(T)));
  const Piece piece{.from = values.data(), .bytes = values.size() * sizeof(T)};
  to.feed.send(data, {&piece, 1}, to.stream);
  return data;
}

void attend_absorbed(const Context& context, Tensor q, const LatentUp& kv_b, const MlaShape& shape,
                     RowRange rows, const KvLayer& cache, Tensor out, const Store* store,
                     const NormedLinear* normed) {
  const int splits = most_splits(context.step.length_bound);
  const size_t query_bytes = size_t(shape.heads) * kRecord * sizeof(uint16_t);
  const size_t value_bytes = size_t(shape.heads) * size_t(splits) * kLatent * sizeof(__half);
  const size_t log_bytes = size_t(shape.heads) * size_t(splits) * sizeof(float);
  const int most = int(std::max<size_t>(8, kPartialBytes / (value_bytes + log_bytes)));
  const int at_once = std::min(most, rows.count);
  char* memory =
      context.workspace.fit_as<char>(size_t(at_once) * (query_bytes + value_bytes + log_bytes));
  const LatentQueries queries{.data = memory, .format = cache.format};
  memory += size_t(at_once) * query_bytes;
  const Partials partials{
      .values = reinterpret_cast<__half*>(memory),
      .log_sums = reinterpret_cast<float*>(memory + size_t(at_once) * value_bytes),
      .max_splits = splits};
  for (int first = 0; first < rows.count; first += at_once) {
    const RowRange pass{rows.first + first, std::min(at_once, rows.count - first)};
    if (normed != nullptr) {
      make_queries(context, *normed, kv_b, shape, queries, *store);
    } else {
      absorb_queries(context, q, kv_b, shape, pass, queries, store);
    }
    attend_splits(context, queries, shape, pass, cache, partials);
    join_splits(context, partials, kv_b, shape, pass, queries.data, out);
  }
}

void attend_expanded(const Context& context, Tensor q, const LatentUp& kv_b, const MlaShape& shape,
                     const Segment& segment, const KvLayer& cache, Tensor out) {
  const RowRange rows{segment.first_row, segment.num_rows};
  const int length = segment.context + segment.num_rows;
  const int slab_length = slab_positions(rows.count);
  const size_t heads = size_t(shape.heads);
  const size_t slab_rows =
      size_t(blocks_for(std::min(length, slab_length), kExpandRows)) * kExpandRows;
  const bool is_packed = kv_b.format == KvFormat::kNvfp4, carries = length > slab_length;
  const size_t pairs = size_t(rows.count) * heads;
  const size_t query_bytes = pairs * kQuery * sizeof(bf16);
  const size_t up_bytes = is_packed ? heads * kUpRows * kLatent * sizeof(bf16) : 0;
  const size_t latent_bytes = slab_rows * kLatent * sizeof(bf16);
  const size_t rope_bytes = slab_rows * kRope * sizeof(bf16);
  const size_t slab_bytes = slab_rows * heads * kUpRows * sizeof(bf16);
  const size_t carry_bytes = carries ? pairs * kValue * sizeof(float) : 0;
  const size_t sum_bytes = carries ? pairs * sizeof(float4) : 0;
  const size_t top_bytes = carries ? pairs * sizeof(float) : 0;
  char* memory = context.workspace.fit_as<char>(query_bytes + up_bytes + latent_bytes + rope_bytes +
                                                slab_bytes + carry_bytes + sum_bytes + top_bytes);
  const auto take = [&](size_t bytes) { return std::exchange(memory, memory + bytes); };
  bf16* const queries = reinterpret_cast<bf16*>(take(query_bytes));
  bf16* const unpacked = reinterpret_cast<bf16*>(take(up_bytes));
  const Expanded slab{.latents = reinterpret_cast<bf16*>(take(latent_bytes)),
                      .ropes = reinterpret_cast<bf16*>(take(rope_bytes)),
                      .keys_values = reinterpret_cast<bf16*>(take(slab_bytes))};
  float* const carried = reinterpret_cast<float*>(take(carry_bytes));
  float4* const sums = reinterpret_cast<float4*>(take(sum_bytes));
  const Carry carry{
      .values = carried, .tops = reinterpret_cast<float*>(take(top_bytes)), .sums = sums};
  turn_queries(context, q, shape, rows, queries);
  if (is_packed) unpack_up(context, kv_b, unpacked);
  const bf16* up = is_packed ? unpacked : reinterpret_cast<const bf16*>(kv_b.values);
  const int32_t* pages = context.step.pages + segment.first_page;
  for (int first = 0; first < length; first += slab_length) {
    const SlabRange range{
        .first = first, .count = std::min(slab_length, length - first), .context = segment.context};
    expand_records(context, cache, pages, first, range.count, kv_b, up, slab);
    attend_slab(context, queries, slab, range, shape, rows, carry, out);
  }
}

}  // namespace

std::shared_ptr<const void> upload_latent_up(const Uploads& to, const Weight& host) {
  CHECK(host.rows == kUpRows && host.cols == kLatent, "%s", host.name.c_str());
  LatentUp up{.heads = int(host.count)};
  const bool is_nvfp4 = std::ranges::all_of(host.parts, [](const WeightPart& part) {
    return part.format == Format::kNvfp4 && part.input_scales == nullptr;
  });
  std::vector<uint8_t> values, block_scales;
  std::vector<float> row_scales, row(kLatent);
  if (is_nvfp4) {
    for (const WeightPart& part : host.parts) {
      values.insert(values.end(), part.values, part.values + part.rows * kLatent / 2);
      block_scales.insert(block_scales.end(), part.block_scales,
                          part.block_scales + part.rows * kLatent / 16);
      row_scales.insert(row_scales.end(), size_t(part.rows),
                        part.global_scale / host.parts[0].global_scale);
    }
    up.format = KvFormat::kNvfp4;
    up.block_scales = copy_to_card(to, block_scales);
    up.row_scales = copy_to_card(to, row_scales);
    up.scale = host.parts[0].global_scale;
  } else {
    for (int64_t r = 0; r < host.total_rows(); ++r) {
      decode_row(host, r, row.data());
      for (const float value : row) {
        const uint16_t bits = float_to_bf16(value);
        values.push_back(uint8_t(bits));
        values.push_back(uint8_t(bits >> 8));
      }
    }
  }
  up.values = copy_to_card(to, values);
  return std::make_shared<LatentUp>(up);
}

// Where rows follow their own segments' earlier rows pass by pass, none attends to one that is
// still to be stored.
bool can_store_and_attend(const Store& store, const Batch& batch) {
  return store.kv.rows <= kMaxStoredAlong && store.kv.rows == batch.rows() &&
         std::ranges::none_of(batch.segments, [](const Segment& s) { return s.expanded; });
}

bool may_be_queries(const NormedLinear& linear) {
  return linear.out.rows == 1 && linear.out.cols % kQuery == 0 && !linear.accumulate;
}

void mla_attention(const Context& context, Tensor q, const Weight& kv_b, const MlaShape& shape,
                   const Batch& batch, const KvLayer& cache, Tensor out, const Store* store,
                   const NormedLinear* queries) {
  CHECK(shape.nope_dim == kNope && shape.rope_dim == kRope && shape.value_dim == kValue &&
            shape.latent_dim == kLatent,
        "heads of %d + %d, %d over a latent of %d", shape.nope_dim, shape.rope_dim, shape.value_dim,
        shape.latent_dim);
  const LatentUp& up = resident_as<LatentUp>(kv_b);
  if (queries != nullptr && (store == nullptr || !can_make_queries(context, *queries, up, shape))) {
    norm_and_linear(context, *queries);
    queries = nullptr;
  }
  RowRange absorbed;  // the last of them, grown while segments follow each other
  const auto attend = [&] {
    if (absorbed.count > 0) {
      attend_absorbed(context, q, up, shape, absorbed, cache, out, store, queries);
    }
    absorbed.count = 0;
  };
  for (const Segment& segment : batch.segments) {
    if (segment.num_rows == 0) continue;
    if (segment.expanded) {
      attend();
      attend_expanded(context, q, up, shape, segment, cache, out);
    } else {
      if (absorbed.count == 0) absorbed.first = segment.first_row;
      absorbed.count += segment.num_rows;
    }
  }
  attend();
}

}  // namespace nibble::cuda
