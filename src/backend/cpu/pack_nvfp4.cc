// NVFP4 panels: words of codes are moved as they are stored, no code is looked at.
#include <algorithm>
#include <cstring>
#include <vector>

#include "backend/cpu/packer.h"
#include "quant/nvfp4.h"
#include "quant/stored_float.h"

namespace nibble {
namespace {

constexpr int kWordCodes = 8;
constexpr uint32_t kCodeSigns = 0x88888888u;

// Word `word` (8 columns) of a lane, and the scale of 16 columns, in a panel.
uint8_t* word_at(uint8_t* panel, int64_t word, int lane) {
  return panel + kLineBytes + word / 8 * kNvfp4BlockBytes + (1 + word % 8) * kLineBytes + lane * 4;
}
uint8_t* scale_at(uint8_t* panel, int64_t group, int lane) {
  return panel + kLineBytes + group / 4 * kNvfp4BlockBytes + lane * 4 + group % 4;
}
// kNvfp4Columns: the scale of a column.
uint8_t* column_scale_at(uint8_t* panel, int64_t column) {
  return panel + kLineBytes + column / kNvfp4Columns * kNvfp4BlockBytes + column % kNvfp4Columns;
}

uint8_t* panel_of(const PanelStack& stack, int64_t matrix, int64_t panel) {
  return const_cast<uint8_t*>(stack.matrix(matrix).panel(panel));
}

// A negative scale becomes a positive one of codes of the other sign: kernels look at no sign.
void store_row(const PartRow& at, int64_t cols, uint8_t* panel, int lane) {
  const uint8_t* codes = at.part->values + at.row * cols / 2;
  const uint8_t* scales = at.part->block_scales + at.row * cols / nvfp4::kBlock;
  std::memcpy(panel + lane * 4, &at.part->global_scale, 4);
  for (int64_t g = 0; g < cols / nvfp4::kBlock; ++g) {
    uint32_t words[2];
    std::memcpy(words, codes + g * 8, 8);
    if ((scales[g] & 0x80) != 0) words[0] ^= kCodeSigns, words[1] ^= kCodeSigns;
    std::memcpy(word_at(panel, 2 * g, lane), &words[0], 4);
    std::memcpy(word_at(panel, 2 * g + 1, lane), &words[1], 4);
    *scale_at(panel, g, lane) = scales[g] & 0x7f;
  }
}

// Two parts multiply their inputs by the same factors.
bool same_factors(const WeightPart& a, const WeightPart& b, int64_t cols) {
  if (a.input_scales == b.input_scales) return true;
  if (a.input_scales == nullptr || b.input_scales == nullptr) return false;
  for (int64_t k = 0; k < cols; ++k) {
    if (stored_float(a.input_scales, a.input_scale_dtype, k) !=
        stored_float(b.input_scales, b.input_scale_dtype, k)) {
      return false;
    }
  }
  return true;
}

// The sets of factors, and the set of each panel.
void keep_factors(const Outputs& outputs, PanelStack& stack, PackedWeight& owner) {
  const Weight& w = outputs.weight;
  if (w.parts[0].input_scales == nullptr) return;
  const int64_t panels = stack.first.count();
  const int before = int(int64_t(owner.input_factors.size()) / w.cols);  // sets of other stacks
  std::vector<const WeightPart*> sets;
  for (int64_t i = 0; i < w.count * panels; ++i) {
    const WeightPart* part = find_row(w, i / panels * w.rows + outputs.row(i % panels, 0)).part;
    int set = int(sets.size()) - 1;
    while (set >= 0 && !same_factors(*sets[size_t(set)], *part, w.cols)) --set;
    if (set < 0) {
      set = int(sets.size());
      sets.push_back(part);
      for (int64_t k = 0; k < w.cols; ++k) {
        owner.input_factors.push_back(stored_float(part->input_scales, part->input_scale_dtype, k));
      }
    }
    stack.factor_sets.push_back(before + set);
  }
}

}  // namespace

Panels nvfp4_panels(int64_t rows, int64_t cols) {
  return {.format = PanelFormat::kNvfp4,
          .rows = rows,
          .cols = cols,
          .lines = 1 + (cols + kNvfp4Columns - 1) / kNvfp4Columns * (kNvfp4BlockBytes / kLineBytes),
          .group_panels = 1};
}

Panels nvfp4_key_panels(const Weight& w) {
  Panels panels = nvfp4_panels(w.cols, w.key_rows);
  panels.format = PanelFormat::kNvfp4Columns;
  return panels;
}

bool fits_nvfp4(const Outputs& outputs) {
  const Weight& w = outputs.weight;
  const RowRange& range = outputs.range;
  for (const WeightPart& part : w.parts) {
    if (part.format != Format::kNvfp4) return false;
    if ((part.input_scales == nullptr) != (w.parts[0].input_scales == nullptr)) return false;
  }
  // A part that begins inside a panel must not bring factors of its own.
  int64_t row = 0;
  for (size_t i = 0; i + 1 < w.parts.size(); ++i) {
    row += w.parts[i].rows;
    const int64_t in_range = row % w.rows - range.first;
    const int64_t in_half = outputs.gated ? in_range % outputs.half() : in_range;
    const bool inside = in_range > 0 && in_range < range.count && in_half % kPanelRows != 0;
    if (inside && !same_factors(w.parts[i], w.parts[i + 1], w.cols)) return false;
  }
  return true;
}

bool fits_nvfp4_keys(const Weight& w) {
  for (const WeightPart& part : w.parts) {
    if (part.format != Format::kNvfp4) return false;
  }
  for (int64_t h = 0; h < w.count; ++h) {
    const WeightPart* first = find_row(w, h * w.rows).part;
    if (find_row(w, h * w.rows + w.key_rows - 1).part != first) return false;
  }
  return true;
}

PanelStack pack_nvfp4(const Outputs& outputs, Packer& packer) {
  const Weight& w = outputs.weight;
  PanelStack stack = packer.new_stack(nvfp4_panels(outputs.count(), w.cols), w.count);
  const int64_t panels = stack.first.count();
  keep_factors(outputs, stack, packer.owner());
  packer.pool().parallel_for(w.count * panels, [&](int64_t i) {
    uint8_t* panel = panel_of(stack, i / panels, i % panels);
    for (int lane = 0; lane < kPanelRows; ++lane) {
      const int64_t row = outputs.row(i % panels, lane);
      if (row >= 0) store_row(find_row(w, i / panels * w.rows + row), w.cols, panel, lane);
    }
  });
  return stack;
}

// The 16 outputs of a panel are the 16 columns of a block, which share its scale. What is a factor
// of an input elsewhere is one of an output here.
PanelStack pack_nvfp4_keys(const Weight& w, Packer& packer) {
  const PanelStack stack = packer.new_stack(nvfp4_key_panels(w), w.count);
  const int64_t panels = stack.first.count();
  packer.pool().parallel_for(w.count * panels, [&](int64_t i) {
    uint8_t* panel = panel_of(stack, i / panels, i % panels);
    const int64_t first_row = i / panels * w.rows;
    for (int lane = 0; lane < kPanelRows; ++lane) {
      const WeightPart& part = *find_row(w, first_row).part;
      float scale = part.global_scale;
      if (part.input_scales != nullptr) {
        const int64_t column = i % panels * kPanelRows + lane;
        scale *= stored_float(part.input_scales, part.input_scale_dtype, column);
      }
      std::memcpy(panel + lane * 4, &scale, 4);
    }
    for (int64_t d = 0; d < w.key_rows; ++d) {
      const PartRow at = find_row(w, first_row + d);
      const uint8_t* codes = at.part->values + (at.row * w.cols + i % panels * kPanelRows) / 2;
      const uint8_t scale = at.part->block_scales[at.row * w.cols / nvfp4::kBlock + i % panels];
      const uint8_t sign = (scale & 0x80) != 0 ? 8 : 0;
      *column_scale_at(panel, d) = scale & 0x7f;
      for (int lane = 0; lane < kPanelRows; ++lane) {
        const uint8_t code = uint8_t((codes[lane / 2] >> (lane % 2 * 4) & 15) ^ sign);
        uint8_t* word = word_at(panel, d / kWordCodes, lane);
        word[d % kWordCodes / 2] |= uint8_t(code << (d % 2 * 4));
      }
    }
  });
  return stack;
}

}  // namespace nibble
