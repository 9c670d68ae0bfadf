// What an expanded segment attends to: queries turned and scaled, and for a slab of its positions
// the records as BF16 and, through kv_b, every head's key and value:
//
//   expanded[p][h] = [kv_b[h][:192] c[p] | kv_b[h][192:] c[p]]            K = 512, BF16
//
// a product of [positions, 512] and [heads * 448, 512] in tiles of 128 x 128 x 64, three stages of
// cp.async, 8 warps of 64 x 32.
#include "backend/cuda/dtypes.h"
#include "backend/cuda/mla_stages.h"
#include "backend/cuda/rope.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = kExpandRows, kDepth = 64, kStages = 3;
constexpr int kPieces = kDepth / 8;  // of 16 bytes, a row of a tile
constexpr size_t kTileBytes = size_t(kTile) * kDepth * sizeof(bf16);

// A thread has 8 values of a record. Rows from `count` to whole multiples of kExpandRows repeat
// the last.
template <KvFormat format>
__global__ void __launch_bounds__(kThreads)
    decode_kernel(Records records, const int32_t* pages, int first, int count, Expanded out) {
  wait_for_predecessor();
  let_successor_begin();
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const int row = i / (kRecord / 8), eight = i % (kRecord / 8) * 8;
  if (row >= (count + kExpandRows - 1) / kExpandRows * kExpandRows) return;
  const int position = first + min(row, count - 1);
  const int64_t page = pages[position / records.page_size];
  const int slot = position % records.page_size;
  const uint8_t* from = records.values(page, slot);
  const bool is_rope = eight >= kLatent;
  float v[8];
  if constexpr (format == KvFormat::kF32) {
    for (int k = 0; k < 8; ++k) v[k] = reinterpret_cast<const float*>(from)[eight + k];
  } else if constexpr (format == KvFormat::kBF16) {
    for (int k = 0; k < 8; ++k) v[k] = to_float(reinterpret_cast<const bf16*>(from)[eight + k]);
  } else if constexpr (format == KvFormat::kFp8) {
    for (int k = 0; k < 8; k += 2) {
      const uint32_t bytes = *reinterpret_cast<const uint16_t*>(from + eight + k);
      const float2 pair = unpack(e4m3_pair(bytes, 0x1404), __half());
      v[k] = pair.x * 256.0f, v[k + 1] = pair.y * 256.0f;
    }
  } else {
    constexpr bool is_int8 = format == KvFormat::kInt8;
    if (is_int8 || is_rope) {
      const bf16* scales = reinterpret_cast<const bf16*>(records.scales(page, slot));
      const float scale = to_float(scales[is_int8 && is_rope ? 1 : 0]);
      const int at = is_int8 ? eight : kLatent / 2 + kLatent / 16 + eight - kLatent;
      for (int k = 0; k < 8; ++k) v[k] = float(int8_t(from[at + k])) * scale;
    } else {
      const uint32_t codes = *reinterpret_cast<const uint32_t*>(from + eight / 2);
      const uint32_t scale = block_scale_pair(from[kLatent / 2 + eight / 16], 0x0404);
      const uint32_t pairs[4] = {e2m1_pair<0>(codes), e2m1_pair<1>(codes), e2m1_pair<2>(codes),
                                 e2m1_pair<3>(codes)};
      for (int k = 0; k < 4; ++k) {
        const float2 pair = unpack(multiply_halves(pairs[k], scale), __half());
        v[k] = pair.x * 128.0f, v[k + 4] = pair.y * 128.0f;
      }
    }
  }
  bf16* const to = is_rope ? out.ropes + int64_t(row / kPanelRows) * kPanel +
                                 panel_offset(row % kPanelRows, (eight - kLatent) / 8)
                           : out.latents + int64_t(row) * kLatent + eight;
  *reinterpret_cast<uint4*>(to) = make_uint4(pack(v[0], v[1], bf16()), pack(v[2], v[3], bf16()),
                                             pack(v[4], v[5], bf16()), pack(v[6], v[7], bf16()));
}

// NVFP4 without the tensor's scale, exact in BF16. A thread has 8 values.
__global__ void __launch_bounds__(kThreads) unpack_kernel(LatentUp w, int64_t count, bf16* out) {
  wait_for_predecessor();
  let_successor_begin();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const uint32_t codes = reinterpret_cast<const uint32_t*>(w.values)[i];
  const uint32_t scale = block_scale_pair(w.block_scales[i / 2], 0x0404);
  const uint32_t pairs[4] = {e2m1_pair<0>(codes), e2m1_pair<1>(codes), e2m1_pair<2>(codes),
                             e2m1_pair<3>(codes)};
  float v[8];
  for (int k = 0; k < 4; ++k) {
    const float2 pair = unpack(multiply_halves(pairs[k], scale), __half());
    v[k] = pair.x * 128.0f, v[k + 4] = pair.y * 128.0f;
  }
  reinterpret_cast<uint4*>(out)[i] = make_uint4(pack(v[0], v[1], bf16()), pack(v[2], v[3], bf16()),
                                                pack(v[4], v[5], bf16()), pack(v[6], v[7], bf16()));
}

// A block has a row.
template <typename In>
__global__ void __launch_bounds__(kThreads)
    query_kernel(Matrix<In> q, int first_row, int heads, float scale, Rope rope, StepView step,
                 uint4* out) {
  __shared__ float2 turns[kRope / 2];  // what (1, 0) becomes
  const int row = blockIdx.x;
  if (threadIdx.x < kRope / 2) {
    turns[threadIdx.x] = turn_of(rope, step.positions[first_row + row], threadIdx.x);
  }
  wait_for_predecessor();
  let_successor_begin();
  __syncthreads();
  const In* from = q.row(first_row + row);
  for (int i = threadIdx.x; i < heads * (kQuery / 8); i += kThreads) {
    float v[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] = to_float(from[8 * i + k]) * scale;
    const int pair = (i % (kQuery / 8) * 8 - kNope) / 2;
    if (pair >= 0) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float2 turn = turns[pair + k];
        const float x = v[2 * k], y = v[2 * k + 1];
        v[2 * k] = x * turn.x - y * turn.y, v[2 * k + 1] = x * turn.y + y * turn.x;
      }
    }
    out[int64_t(row) * heads * (kQuery / 8) + i] =
        make_uint4(pack(v[0], v[1], bf16()), pack(v[2], v[3], bf16()), pack(v[4], v[5], bf16()),
                   pack(v[6], v[7], bf16()));
  }
}

__device__ __forceinline__ bf16* piece_at(bf16* tile, int row, int piece) {
  return tile + row * kDepth + (piece ^ (row % 8)) * 8;
}

__device__ __forceinline__ void copy_tile(const bf16* from, int64_t stride, int rows, int depth,
                                          bf16* tile) {
#pragma unroll
  for (int i = 0; i < kTile * kPieces / kThreads; ++i) {
    const int at = i * kThreads + threadIdx.x, row = at / kPieces, piece = at % kPieces;
    const bool valid = row < rows;
    copy_async_16(piece_at(tile, row, piece), from + (valid ? row : 0) * stride + depth + piece * 8,
                  valid);
  }
}

// Blocks: x = 128 outputs, y = 128 positions.
__global__ void __launch_bounds__(kThreads, 2)
    expand_kernel(const bf16* latents, const bf16* w, int outputs, LatentUp scales, bf16* out) {
  extern __shared__ __align__(128) uint8_t memory[];
  bf16* const tiles = reinterpret_cast<bf16*>(memory);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int first_row = blockIdx.y * kTile, first_output = blockIdx.x * kTile;
  const auto copy_step = [&](int k) {
    bf16* a = tiles + k % kStages * (2 * kTile * kDepth);
    copy_tile(latents + int64_t(first_row) * kLatent, kLatent, kTile, k * kDepth, a);
    copy_tile(w + int64_t(first_output) * kLatent, kLatent, outputs - first_output, k * kDepth,
              a + kTile * kDepth);
    commit_copies();
  };
  wait_for_predecessor();
  let_successor_begin();
  for (int k = 0; k < kStages - 1; ++k) copy_step(k);
  float acc[4][4][4] = {};
  const int row = warp / 4 * 64, column = warp % 4 * 32;
  for (int k = 0; k < kLatent / kDepth; ++k) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    if (k + kStages - 1 < kLatent / kDepth) {
      copy_step(k + kStages - 1);
    } else {
      commit_copies();
    }
    bf16* a = tiles + k % kStages * (2 * kTile * kDepth);
    bf16* b = a + kTile * kDepth;
#pragma unroll
    for (int j = 0; j < kDepth / 16; ++j) {
      uint32_t fa[4][4], fb[2][4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        load_matrices_4(fa[m], piece_at(a, row + m * 16 + lane % 16, 2 * j + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        load_matrices_4(
            fb[n], piece_at(b, column + n * 16 + lane / 16 * 8 + lane % 8, 2 * j + lane / 8 % 2));
      }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          multiply_bf16(acc[m][n], fa[m], {fb[n / 2][n % 2 * 2], fb[n / 2][n % 2 * 2 + 1]});
        }
      }
    }
  }
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int output = first_output + column + n * 8 + 2 * t;
    if (output >= outputs) continue;
    float2 scale = make_float2(scales.scale, scales.scale);
    if (scales.row_scales != nullptr) {
      scale.x *= scales.row_scales[output], scale.y *= scales.row_scales[output + 1];
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int position = first_row + row + m * 16 + g + 8 * i;
        const int64_t panel = int64_t(position / kPanelRows) * (outputs / 64) + output / 64;
        *reinterpret_cast<uint32_t*>(out + panel * kPanel + 2 * t +
                                     panel_offset(position % kPanelRows, output % 64 / 8)) =
            pack(acc[m][n][2 * i] * scale.x, acc[m][n][2 * i + 1] * scale.y, bf16());
      }
    }
  }
}

}  // namespace

void turn_queries(const Context& context, Tensor q, const MlaShape& shape, RowRange rows,
                  bf16* out) {
  const float scale = float(std::numbers::log2e / std::sqrt(double(shape.query_dim())));
  with_activation(q.dtype, [&]<typename In>(In) {
    launch(context, {.blocks = {unsigned(rows.count)}, .threads = kThreads}, query_kernel<In>,
           Matrix<In>(q), rows.first, shape.heads, scale, rope_of(shape.rope_dim, shape.rope_theta),
           context.step, reinterpret_cast<uint4*>(out));
  });
}

void unpack_up(const Context& context, const LatentUp& kv_b, bf16* out) {
  const int64_t count = int64_t(kv_b.heads) * kUpRows * kLatent / 8;
  launch(context, {.blocks = {blocks_for(count, kThreads)}, .threads = kThreads}, unpack_kernel,
         kv_b, count, out);
}

void expand_records(const Context& context, const KvLayer& cache, const int32_t* pages, int first,
                    int count, const LatentUp& kv_b, const bf16* unpacked, Expanded out) {
  const int64_t padded = int64_t(blocks_for(count, kExpandRows)) * kExpandRows;
  const Grid grid{.blocks = {blocks_for(padded * kRecord / 8, kThreads)}, .threads = kThreads};
  const auto decode = [&](auto kernel) {
    launch(context, grid, kernel, Records(cache), pages, first, count, out);
  };
  switch (cache.format) {
    case KvFormat::kF32:
      decode(decode_kernel<KvFormat::kF32>);
      break;
    case KvFormat::kBF16:
      decode(decode_kernel<KvFormat::kBF16>);
      break;
    case KvFormat::kFp8:
      decode(decode_kernel<KvFormat::kFp8>);
      break;
    case KvFormat::kInt8:
      decode(decode_kernel<KvFormat::kInt8>);
      break;
    case KvFormat::kNvfp4:
      decode(decode_kernel<KvFormat::kNvfp4>);
      break;
  }
  if (expand_sm90(context, count, kv_b, unpacked, out)) return;
  const int outputs = kv_b.heads * kUpRows;
  const size_t shared = 2 * kTileBytes * kStages;
  allow_shared(expand_kernel, shared);
  CUDA_CHECK(cudaFuncSetAttribute(expand_kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared));
  launch(context,
         {.blocks = {blocks_for(outputs, kTile), blocks_for(count, kTile)},
          .threads = kThreads,
          .shared_bytes = shared},
         expand_kernel, out.latents, unpacked, outputs, kv_b, out.keys_values);
}

}  // namespace nibble::cuda
