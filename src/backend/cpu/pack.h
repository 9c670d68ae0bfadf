// Packed weights: the layout that every CPU kernel reads.
//
// A matrix [N, K] is cut into panels of 16 outputs. A panel is a list of cache lines, in which a
// 32-bit lane belongs to one output:
//
//   BF16   a line per pair (k, k+1):  w[0][k] w[0][k+1] | w[1][k] w[1][k+1] | ... | w[15][..]
//   FP32   a line per k:              w[0][k] | w[1][k] | ... | w[15][k]
//
// Four panels (fewer at the end) are a group, their lines interleaved, so that one row's product,
// which takes a group at once, reads a single stream:
//
//   group  panel 0 line 0 | panel 1 line 0 | panel 2 line 0 | panel 3 line 0 | panel 0 line 1 | ...
//
// An odd K is padded by a zero, the last panel by rows of zeros. NVFP4 and FP8 become BF16: a code,
// times its block scale, has at most 6 significant bits, which BF16 holds exactly; the tensor's
// FP32 scale multiplies the sum. INT4 (11 bits with a BF16 group scale) and weights with input
// scales become FP32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/cpu/memory.h"
#include "base/thread_pool.h"
#include "quant/weight.h"

namespace nibble {

inline constexpr int kPanelRows = 16;
inline constexpr int kGroupPanels = 4;
inline constexpr int kLineBytes = 64;

enum class PanelFormat : uint8_t { kBF16, kF32 };

// One packed matrix, not owned.
struct Panels {
  PanelFormat format = PanelFormat::kBF16;
  const uint8_t* data = nullptr;
  const float* row_scales = nullptr;  // [count() * 16], or null: all 1
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t lines = 0;  // of a panel

  int64_t count() const { return (rows + kPanelRows - 1) / kPanelRows; }
  int64_t bytes() const { return count() * lines * kLineBytes; }
  // Panels of the group from panel p to the group's end.
  int64_t left_in_group(int64_t p) const {
    return std::min(count(), p / kGroupPanels * kGroupPanels + kGroupPanels) - p;
  }
  // Bytes from a line of panel p to its next; the same line of panel p + 1 is kLineBytes away.
  int64_t line_stride(int64_t p) const {
    const int64_t first = p / kGroupPanels * kGroupPanels;
    return left_in_group(first) * kLineBytes;
  }
  const uint8_t* panel(int64_t p) const {
    return data + (p / kGroupPanels * kGroupPanels * lines + p % kGroupPanels) * kLineBytes;
  }
};

// A stack of packed matrices of one shape.
struct PanelStack {
  Panels first{};
  int64_t matrices = 0;

  Panels matrix(int64_t i) const {
    Panels panels = first;
    panels.data += i * first.bytes();
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
