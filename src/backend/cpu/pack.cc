#include "backend/cpu/pack.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "backend/cpu/packer.h"
#include "base/check.h"
#include "base/numbers.h"
#include "quant/nvfp4.h"

namespace nibble {
namespace {

const std::array<float, 256>& e4m3_table() {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> t{};
    for (size_t i = 0; i < t.size(); ++i) t[i] = e4m3_to_float(uint8_t(i));
    return t;
  }();
  return table;
}

constexpr float kE2M1Table[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                  -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

// out[k] = e2m1 * (e4m3 * scale), as decode_row has it.
void decode_nvfp4(const PartRow& at, int64_t cols, float scale, float* out) {
  const uint8_t* codes = at.part->values + at.row * cols / 2;
  const uint8_t* scales = at.part->block_scales + at.row * cols / nvfp4::kBlock;
  for (int64_t block = 0; block < cols / nvfp4::kBlock; ++block) {
    const float block_scale = e4m3_table()[scales[block]] * scale;
    for (int i = 0; i < nvfp4::kBlock / 2; ++i) {
      const uint8_t byte = codes[block * (nvfp4::kBlock / 2) + i];
      *out++ = kE2M1Table[byte & 15] * block_scale;
      *out++ = kE2M1Table[byte >> 4] * block_scale;
    }
  }
}

// Whether BF16 holds the part's values exactly, its tensor scale apart. INT4 times a group scale
// and columns with input scales need more bits.
bool fits_bf16(const WeightPart& part) {
  return part.input_scales == nullptr && part.format != Format::kF32 &&
         part.format != Format::kInt4;
}

bool fits_bf16(const Weight& weight) {
  return std::all_of(weight.parts.begin(), weight.parts.end(),
                     [](const WeightPart& part) { return fits_bf16(part); });
}

bool has_scales(const Weight& weight) {
  return std::any_of(weight.parts.begin(), weight.parts.end(),
                     [](const WeightPart& part) { return part.global_scale != 1.0f; });
}

// Row `r` of a weight that fits BF16, without the tensor's scale; an odd row is padded by a zero.
void bf16_row(const Weight& weight, int64_t r, float* scratch, uint16_t* out) {
  const PartRow at = find_row(weight, r);
  if (at.part->format == Format::kBF16) {
    std::memcpy(out, at.part->values + at.row * weight.cols * 2, size_t(weight.cols) * 2);
  } else {
    if (at.part->format == Format::kNvfp4) {
      decode_nvfp4(at, weight.cols, 1.0f, scratch);
    } else {
      const uint8_t* codes = at.part->values + at.row * weight.cols;
      for (int64_t k = 0; k < weight.cols; ++k) scratch[k] = e4m3_table()[codes[k]];
    }
    for (int64_t k = 0; k < weight.cols; ++k) {
      out[k] = uint16_t(std::bit_cast<uint32_t>(scratch[k]) >> 16);
    }
  }
  if (weight.cols % 2 != 0) out[weight.cols] = 0;
}

// Stores an output of panel p: a 32-bit unit in each of its lines.
void store_output(const void* units, const Panels& panels, int64_t p, int lane) {
  const uint8_t* from = static_cast<const uint8_t*>(units);
  uint8_t* to = const_cast<uint8_t*>(panels.panel(p)) + lane * 4;
  const int64_t stride = panels.line_stride(p);
  for (int64_t i = 0; i < panels.lines; ++i) std::memcpy(to + i * stride, from + i * 4, 4);
}

Panels float_panels(bool f32, int64_t rows, int64_t cols) {
  return {.format = f32 ? PanelFormat::kF32 : PanelFormat::kBF16,
          .rows = rows,
          .cols = cols,
          .lines = f32 ? cols : (cols + 1) / 2};
}

Panels row_panels(const Outputs& outputs) {
  return float_panels(!fits_bf16(outputs.weight), outputs.count(), outputs.weight.cols);
}

Panels column_panels(const Weight& w, const RowRange& range) {
  bool f32 = !fits_bf16(w);
  for (const WeightPart& part : w.parts) f32 |= part.global_scale != w.parts[0].global_scale;
  return float_panels(f32, w.cols, range.count);
}

// Rows of the weight as outputs.
PanelStack pack_rows(const Outputs& outputs, Packer& packer) {
  const Weight& w = outputs.weight;
  PanelStack stack = packer.new_stack(row_panels(outputs), w.count);
  const bool f32 = stack.first.format == PanelFormat::kF32;
  float* scales = !f32 && has_scales(w) ? packer.new_scales(stack) : nullptr;
  const int64_t panels = stack.first.count();
  packer.pool().parallel_for(w.count * panels, [&](int64_t p) {
    std::vector<float> floats(static_cast<size_t>(w.cols));
    std::vector<uint16_t> halves(static_cast<size_t>(w.cols) + 1);
    for (int lane = 0; lane < kPanelRows; ++lane) {
      const int64_t row = outputs.row(p % panels, lane);
      if (row < 0) continue;
      const int64_t r = p / panels * w.rows + row;
      const Panels matrix = stack.matrix(p / panels);
      if (f32) {
        decode_row(w, r, floats.data());
        store_output(floats.data(), matrix, p % panels, lane);
      } else {
        bf16_row(w, r, floats.data(), halves.data());
        store_output(halves.data(), matrix, p % panels, lane);
      }
      if (scales != nullptr) scales[p * kPanelRows + lane] = find_row(w, r).part->global_scale;
    }
  });
  return stack;
}

// Columns of the weight as outputs: the tensor's scale then lies along K, so it must be one.
PanelStack pack_columns(const Weight& w, const RowRange& range, Packer& packer) {
  const float scale = w.parts[0].global_scale;
  PanelStack stack = packer.new_stack(column_panels(w, range), w.count);
  const bool f32 = stack.first.format == PanelFormat::kF32;
  if (!f32 && scale != 1.0f) {
    std::fill_n(packer.new_scales(stack), w.count * stack.first.count() * kPanelRows, scale);
  }
  const size_t unit = f32 ? 4 : 2;
  packer.pool().parallel_for(w.count * range.count, [&](int64_t i) {
    const int64_t k = i % range.count, r = i / range.count * w.rows + range.first + k;
    std::vector<float> floats(static_cast<size_t>(w.cols));
    std::vector<uint16_t> halves(static_cast<size_t>(w.cols) + 1);
    if (f32) {
      decode_row(w, r, floats.data());
    } else {
      bf16_row(w, r, floats.data(), halves.data());
    }
    const uint8_t* values =
        f32 ? reinterpret_cast<uint8_t*>(floats.data()) : reinterpret_cast<uint8_t*>(halves.data());
    const Panels matrix = stack.matrix(i / range.count);
    for (int64_t n = 0; n < w.cols; ++n) {
      const int64_t p = n / kPanelRows;
      const int64_t line = f32 ? k : k / 2, offset = n % kPanelRows * 4 + (f32 ? 0 : k % 2 * 2);
      uint8_t* to = const_cast<uint8_t*>(matrix.panel(p)) + line * matrix.line_stride(p) + offset;
      std::memcpy(to, values + size_t(n) * unit, unit);
    }
  });
  return stack;
}

// Lets go of file pages that nothing will read again soon; reading them still works.
void drop_pages(const Weight& weight) {
  if (!weight.mapped) return;
  const auto drop = [](const uint8_t* data, int64_t bytes) {
    constexpr uintptr_t kPage = 4096;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
    const uintptr_t last = reinterpret_cast<uintptr_t>(data + bytes) / kPage * kPage;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  };
  for (const WeightPart& part : weight.parts) {
    Weight one{.rows = part.rows, .cols = weight.cols, .parts = {part}};
    const int64_t scales = part.block_scales == nullptr ? 0 : part.rows * weight.cols / 16;
    drop(part.values, storage_bytes(one) - scales);
    if (scales > 0) drop(part.block_scales, scales);
  }
}

void pack_latent_up(const Weight& w, bool exact, Packer& packer) {
  CHECK(w.key_rows > 0 && w.key_rows < w.rows, "%s: %ld key rows", w.name.c_str(),
        long(w.key_rows));
  PackedWeight& owner = packer.owner();
  const RowRange keys{0, w.key_rows}, values{w.key_rows, w.rows - w.key_rows};
  const auto pack_range = [&](const RowRange& range) {
    const Outputs outputs{w, range};
    return !exact && fits_nvfp4(outputs) ? pack_nvfp4(outputs, packer) : pack_rows(outputs, packer);
  };
  owner.keys =
      !exact && fits_nvfp4_keys(w) ? pack_nvfp4_keys(w, packer) : pack_columns(w, keys, packer);
  owner.panels = pack_range(values);
  if (w.key_rows % kPanelRows == 0) owner.key_rows = pack_range(keys);
}

}  // namespace

std::shared_ptr<const PackedWeight> pack(const Weight& weight, Arena& arena, ThreadPool& pool,
                                         bool exact) {
  if (weight.use == Use::kTable) return nullptr;
  auto result = std::make_shared<PackedWeight>();
  if (weight.use == Use::kVector) {
    result->values.resize(size_t(weight.total_rows() * weight.cols));
    decode_row(weight, 0, result->values.data());
    return result;
  }
  Packer packer(arena, pool, *result);
  const Outputs all = all_outputs(weight);
  if (weight.use == Use::kLatentUp) {
    pack_latent_up(weight, exact, packer);
  } else if (!exact && fits_nvfp4(all)) {
    result->panels = pack_nvfp4(all, packer);
  } else if (!exact && weight.use == Use::kHead) {
    result->panels = pack_int8(weight, packer);
    return result;  // whose rows are read again
  } else {
    result->panels = pack_rows(all, packer);
  }
  drop_pages(weight);
  return result;
}

int64_t packed_bytes(const Weight& w, bool exact) {
  if (w.use == Use::kTable) return 0;
  if (w.use == Use::kVector) return w.total_rows() * w.cols * int64_t(sizeof(float));
  const auto bytes_of = [&](const Outputs& outputs) {
    const bool nvfp4 = !exact && fits_nvfp4(outputs);
    return w.count * (nvfp4 ? nvfp4_panels(outputs.count(), w.cols) : row_panels(outputs)).bytes();
  };
  if (w.use != Use::kLatentUp) {
    const Outputs all = all_outputs(w);
    const bool int8 = !exact && w.use == Use::kHead && !fits_nvfp4(all);
    return int8 ? int8_panels(w).bytes() : bytes_of(all);
  }
  const RowRange keys{0, w.key_rows}, values{w.key_rows, w.rows - w.key_rows};
  const bool nvfp4 = !exact && fits_nvfp4_keys(w);
  const Panels columns = nvfp4 ? nvfp4_key_panels(w) : column_panels(w, keys);
  const int64_t key_rows = w.key_rows % kPanelRows == 0 ? bytes_of({w, keys}) : 0;
  return w.count * columns.bytes() + bytes_of({w, values}) + key_rows;
}

const PackedWeight& packed(const Weight& weight) {
  CHECK(weight.resident != nullptr, "%s is not uploaded", weight.name.c_str());
  return *static_cast<const PackedWeight*>(weight.resident.get());
}

void look_up_row(const Weight& table, int64_t row, float* out) {
  const PartRow at = find_row(table, row);
  switch (at.part->format) {
    case Format::kF32:
      std::memcpy(out, at.part->values + at.row * table.cols * 4, size_t(table.cols) * 4);
      return;
    case Format::kBF16:
      for (int64_t k = 0; k < table.cols; ++k) {
        uint16_t bits;
        std::memcpy(&bits, at.part->values + (at.row * table.cols + k) * 2, 2);
        out[k] = bf16_to_float(bits);
      }
      return;
    case Format::kNvfp4:
      return decode_nvfp4(at, table.cols, at.part->global_scale, out);
    case Format::kFp8:
    case Format::kInt4:
      return decode_row(table, row, out);
  }
}

}  // namespace nibble
