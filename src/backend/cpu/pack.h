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
// NVFP4 panels are not grouped. A panel is the 16 tensor scales (FP32), then blocks of 64 columns:
//
//   block  line 0: a word an output, its 4 block scales (E4M3), that of columns 0..15 first
//          line 1 + i, i = 0..7: a word an output, 8 codes as stored: columns 8i .. 8i + 7, low
//          nibble first
//
// so that whoever computes reads lines in rising order, which is what machines prefetch best.
// Where outputs are the stored columns (the keys of kLatentUp), the 16 of a panel share the block
// scales: line 0 of a block has one of each of the 64 columns of the panel (the stored rows).
//
// INT8 panels (the head) are not grouped either. A panel is 16 scales (FP32), 16 errors (FP32, see
// head.h), then lines of 4 columns, a word an output: columns 0, 2, 4 and 6 of 8 first, then 1, 3,
// 5 and 7, as NVFP4's nibbles have them.
//
// kGatedExperts: panels of the gate and of what it gates alternate, so that one stream has all of
// 16 columns of the width. Each of the two is padded by rows of zeros to whole panels.
//
// K is padded by zeros to a whole line or block, the last panel by rows of zeros. FP8, and NVFP4
// mixed with other formats, become BF16: a code, times its block scale, has at most 6 significant
// bits, which BF16 holds exactly; the tensor's FP32 scale multiplies the sum. INT4 (11 bits with a
// BF16 group scale) and weights with input scales become FP32; but NVFP4 stays, its input scales
// kept beside it, unless those of two parts meet inside a panel.
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

inline constexpr int kNvfp4Columns = 64;                 // of a block
inline constexpr int kNvfp4BlockBytes = 9 * kLineBytes;  // scales, then codes

enum class PanelFormat : uint8_t { kBF16, kF32, kNvfp4, kNvfp4Columns, kInt8 };
inline constexpr int kPanelFormats = 5;

// One packed matrix, not owned.
struct Panels {
  PanelFormat format = PanelFormat::kBF16;
  const uint8_t* data = nullptr;
  const float* row_scales = nullptr;  // kBF16: [count() * 16], or null: all 1
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t lines = 0;  // of a panel
  int64_t group_panels = kGroupPanels;

  int64_t count() const { return (rows + kPanelRows - 1) / kPanelRows; }
  int64_t bytes() const { return count() * lines * kLineBytes; }
  // Panels of the group from panel p to the group's end.
  int64_t left_in_group(int64_t p) const {
    return std::min(count(), p / group_panels * group_panels + group_panels) - p;
  }
  // Bytes from a line of panel p to its next; the same line of panel p + 1 is kLineBytes away.
  int64_t line_stride(int64_t p) const {
    const int64_t first = p / group_panels * group_panels;
    return left_in_group(first) * kLineBytes;
  }
  const uint8_t* panel(int64_t p) const {
    return data + (p / group_panels * group_panels * lines + p % group_panels) * kLineBytes;
  }
};

// A stack of packed matrices of one shape.
struct PanelStack {
  Panels first{};
  int64_t matrices = 0;
  // NVFP4 with factors of the inputs: which set (PackedWeight::input_factors) a panel's inputs are
  // multiplied by, [matrices * panels]; else empty.
  std::vector<int32_t> factor_sets{};

  Panels matrix(int64_t i) const {
    Panels panels = first;
    panels.data += i * first.bytes();
    if (panels.row_scales != nullptr) panels.row_scales += i * first.count() * kPanelRows;
    return panels;
  }
};

// What Weight::resident points to.
struct PackedWeight {
  // kLinear, kHead, kExperts: all; kLatentUp: per head the rows that make the value.
  PanelStack panels{};
  // kLatentUp: per head [latent, nope], the transpose of the rows that make the key, for queries.
  PanelStack keys{};
  // kLatentUp: per head the rows that make the key, for expanded positions; none where their number
  // is no multiple of kPanelRows.
  PanelStack key_rows{};
  std::vector<float> input_factors{};              // sets of [cols]
  float largest_norm = 0;                          // INT8: of a row
  std::vector<float> values{};                     // kVector
  std::vector<std::shared_ptr<uint8_t>> memory{};  // of the stacks
};

// A run of panels of a matrix with the same factors of the inputs.
struct PanelRun {
  int64_t last = 0;
  int set = -1;  // none
  const float* factors = nullptr;
};

// The longest run from panel `first` of a matrix of one of the weight's stacks on, up to `last`.
inline PanelRun panel_run(const PackedWeight& w, const PanelStack& stack, int64_t matrix,
                          int64_t first, int64_t last) {
  if (stack.factor_sets.empty()) return {.last = last};
  const int32_t* sets = stack.factor_sets.data() + matrix * stack.first.count();
  int64_t end = first + 1;
  while (end < last && sets[end] == sets[first]) ++end;
  return {end, sets[first], w.input_factors.data() + sets[first] * stack.first.cols};
}

// kTable keeps its rows as they are (resident null). `exact`: panels of BF16 and F32 only, whose
// kernels can take FP32 inputs.
std::shared_ptr<const PackedWeight> pack(const Weight& weight, Arena& arena, ThreadPool& pool,
                                         bool exact = false);

// Bytes of the memory that pack() takes, from the weight's shape and formats alone.
int64_t packed_bytes(const Weight& weight, bool exact = false);

// The weight's packed form; CHECKs that it was uploaded.
const PackedWeight& packed(const Weight& weight);

// decode_row() of weight.h, for tables whose rows are looked up all the time.
void look_up_row(const Weight& table, int64_t row, float* out);

}  // namespace nibble
