// The product of expand_records on Hopper, by warpgroup MMAs: tiles of 128 positions x 256 outputs,
// two warpgroups of 64 positions each, K in steps of 64, four stages of cp.async.
//
// Only in builds for sm_90a.
#include "backend/cuda/mla_stages.h"
#include "backend/cuda/mla_warpgroup.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256, kRows = kExpandRows, kOutputs = 256, kDepth = 64, kStages = 4;
constexpr int kSteps = kLatent / kDepth;
constexpr int kStage = (kRows + kOutputs) * kDepth;  // values
constexpr int kPitch = kOutputs + 8;                 // of outputs on their way to memory
constexpr size_t kShared = size_t(kStages) * kStage * sizeof(bf16) + 1024;

// Blocks: x = 256 outputs, y = 128 positions.
__global__ void __launch_bounds__(kThreads, 1)
    expand_sm90_kernel(const bf16* latents, const bf16* w, int outputs, LatentUp scales,
                       bf16* out) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t memory[];
  bf16* const tiles =
      reinterpret_cast<bf16*>((reinterpret_cast<uintptr_t>(memory) + 1023) / 1024 * 1024);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int first_row = blockIdx.y * kRows, first_output = blockIdx.x * kOutputs;
  const int row = threadIdx.x / 8, piece = threadIdx.x % 8;
  const auto copy_step = [&](int k) {  // outputs past the last repeat it, and are not written
    bf16* const a = tiles + k % kStages * kStage;
    bf16* const b = a + kRows * kDepth;
#pragma unroll
    for (int i = 0; i < kRows; i += kThreads / 8) {
      copy_async_16(panel_piece_at<kRows>(a, i + row, piece),
                    latents + int64_t(first_row + i + row) * kLatent + k * kDepth + piece * 8);
    }
#pragma unroll
    for (int i = 0; i < kOutputs; i += kThreads / 8) {
      const int from = min(first_output + i + row, outputs - 1);
      copy_async_16(panel_piece_at<kOutputs>(b, i + row, piece),
                    w + int64_t(from) * kLatent + k * kDepth + piece * 8);
    }
  };
  wait_for_predecessor();
  let_successor_begin();
  copy_step(0);
  commit_copies();
  copy_step(1);
  commit_copies();
  float acc[32][4];
  for (int k = 0; k < kSteps; ++k) {
    wait_for_copies<1>();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    settle(acc);
    begin_products();
    const bf16* const a = tiles + k % kStages * kStage + warp / 4 * (64 * kDepth);
    const bf16* const b = tiles + k % kStages * kStage + kRows * kDepth;
#pragma unroll
    for (int j = 0; j < kDepth / 16; ++j) {
      multiply_256(acc, describe(a + j * 16, 16), describe(b + j * 16, 16), k + j > 0);
    }
    end_products();
    if (k + 2 < kSteps) copy_step(k + 2);  // where step k - 2 was, which has been waited for
    commit_copies();
    wait_for_products<1>();
  }
  wait_for_products<0>();
  settle(acc);
  __syncthreads();
  uint32_t* const staged = reinterpret_cast<uint32_t*>(tiles) + warp * (16 * kPitch / 2);
#pragma unroll
  for (int n = 0; n < 32; ++n) {
    const int output = min(first_output + n * 8 + 2 * t, outputs - 2);
    float2 scale = make_float2(scales.scale, scales.scale);
    if (scales.row_scales != nullptr) {
      const float2 own = *reinterpret_cast<const float2*>(scales.row_scales + output);
      scale.x *= own.x, scale.y *= own.y;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      staged[((g + 8 * i) * kPitch + n * 8) / 2 + t] =
          pack(acc[n][2 * i] * scale.x, acc[n][2 * i + 1] * scale.y, bf16());
    }
  }
  __syncwarp();
  const int output = first_output + lane * 8, position = first_row + warp * 16;
  if (output >= outputs) return;
  bf16* const panel =
      out + (int64_t(position / kPanelRows) * (outputs / 64) + output / 64) * kPanel;
  for (int i = 0; i < 16; ++i) {
    *reinterpret_cast<uint4*>(panel + panel_offset(position % kPanelRows + i, lane % 8)) =
        *reinterpret_cast<const uint4*>(staged + (i * kPitch + lane * 8) / 2);
  }
#endif
}

}  // namespace

bool expand_sm90(const Context& context, int count, const LatentUp& kv_b, const bf16* unpacked,
                 Expanded out) {
#ifdef NIBBLE_CUDA_SM90A
  if (context.device.arch != 90) return false;
  const int outputs = kv_b.heads * kUpRows;
  allow_shared(expand_sm90_kernel, kShared);
  launch(context,
         {.blocks = {blocks_for(outputs, kOutputs), blocks_for(count, kRows)},
          .threads = kThreads,
          .shared_bytes = kShared},
         expand_sm90_kernel, out.latents, unpacked, outputs, kv_b, out.keys_values);
  return true;
#else
  (void)context, (void)count, (void)kv_b, (void)unpacked, (void)out;
  return false;
#endif
}

}  // namespace nibble::cuda
