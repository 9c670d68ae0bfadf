// Packed weights: the layout that every CPU kernel reads.
//
// A matrix [N, K] is cut into panels of 16 outputs; inside a panel K comes in pairs:
//
//   BF16   per pair (k, k+1), 64 bytes:  w[0][k] w[0][k+1] | w[1][k] w[1][k+1] | ... | w[15][..]
//   FP32   per k, 64 bytes:              w[0][k] | w[1][k] | ... | w[15][k]
//
// so that a 32-bit lane belongs to one output and the next pair is the next cache line. An odd K is
// padded by a zero, the last panel by rows of zeros. NVFP4 becomes BF16: code times block scale has
// at most 6 significant bits, which BF16 holds exactly; the tensor's FP32 scale multiplies the sum.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/cpu/memory.h"
#include "base/thread_pool.h"
#include "quant/weight.h"

namespace nibble {

inline constexpr int kPanelRows = 16;

enum class PanelFormat : uint8_t { kBF16, kF32 };

// One packed matrix, not owned.
struct Panels {
  PanelFormat format = PanelFormat::kBF16;
  const uint8_t* data = nullptr;
  const float* row_scales = nullptr;  // [count() * 16], or null: all 1
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t panel_bytes = 0;  // from one panel to the next

  int64_t count() const { return (rows + kPanelRows - 1) / kPanelRows; }
};

// A stack of packed matrices of one shape.
struct PanelStack {
  Panels first{};
  int64_t matrices = 0;

  Panels matrix(int64_t i) const {
    Panels panels = first;
    panels.data += i * first.count() * first.panel_bytes;
    if (panels.row_scales != nullptr) panels.row_scales += i * first.count() * kPanelRows;
    return panels;
  }
};

// What Weight::resident points to.
struct PackedWeight {
  PanelStack panels{};          // kLinear, kExperts, kLatentUp
  PanelStack transposed{};      // kLatentUp: per head [latent, nope + value]; a prefix of K is W_UK
  std::vector<float> values{};  // kVector
  std::vector<std::shared_ptr<uint8_t>> memory{};  // of the stacks
};

// kTable keeps its rows as they are (resident null).
std::shared_ptr<const PackedWeight> pack(const Weight& weight, Arena& arena, ThreadPool& pool);

// The weight's packed form; CHECKs that it was uploaded.
const PackedWeight& packed(const Weight& weight);

// decode_row() of weight.h, for tables whose rows are looked up all the time.
void look_up_row(const Weight& table, int64_t row, float* out);

}  // namespace nibble
