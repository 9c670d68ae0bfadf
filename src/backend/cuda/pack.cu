// Packs matrices for the tensor cores (packed.h): a thread makes 16 bytes of codes or values.
#include <algorithm>
#include <deque>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/packed.h"
#include "base/error.h"
#include "quant/nvfp4.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxSources = 16;

// Rows of a matrix as the checkpoint has them, on the card.
struct Source {
  const uint8_t* values = nullptr;
  const uint8_t* block_scales = nullptr;
  float global_scale = 1.0f;
  Format format = Format::kBF16;
  int first_row = 0, rows = 0;
};

struct Sources {
  Source source[kMaxSources];
  int count = 0;
};

struct PackTask {
  PackedMatrices to;
  uint8_t* data = nullptr;   // of the matrix
  float* factors = nullptr;  // of the matrix
  int first_tile = 0, end_tile = 0;
};

// The matrix' row at `place` (0-15) of a tile, -1 for padding.
__host__ __device__ int row_at(const PackedMatrices& w, int tile, int place) {
  if (!w.halves) return tile * 16 + place < w.rows ? tile * 16 + place : -1;
  const int row = tile * 8 + place % 8;
  return row < w.rows / 2 ? row + place / 8 * (w.rows / 2) : -1;
}

__device__ const Source* source_of(const Sources& sources, int row) {
  for (int i = 0; row >= 0 && i < sources.count; ++i) {
    const Source& s = sources.source[i];
    if (row >= s.first_row && row < s.first_row + s.rows) return &s;
  }
  return nullptr;
}

__device__ float e4m3_value(uint8_t bits) {
  const int exponent = (bits >> 3) & 15, mantissa = bits & 7;
  if ((bits & 0x7f) == 0x7f) return __int_as_float(0x7fc00000);
  const float magnitude =
      exponent == 0 ? float(mantissa) * 0x1p-9f : ldexpf(float(8 + mantissa), exponent - 10);
  return bits & 0x80 ? -magnitude : magnitude;
}

// BF16, FP8 (without the global scale) and F32.
__device__ float value_at(const Source& s, int row, int column, int cols) {
  const int64_t i = int64_t(row - s.first_row) * cols + column;
  if (s.format == Format::kF32) return reinterpret_cast<const float*>(s.values)[i];
  if (s.format == Format::kFp8) return e4m3_value(s.values[i]);
  return __int_as_float(int(reinterpret_cast<const uint16_t*>(s.values)[i]) << 16);
}

// E4M3 magnitude, not zero, as E5M3 with bias 9; NaN as all ones, which decodes to NaN.
__device__ uint32_t e5m3_of(uint32_t magnitude) {
  if (magnitude == 0x7f) return 0xff;
  const uint32_t exponent = magnitude >> 3, mantissa = magnitude & 7;
  if (exponent > 0) return (exponent + 2) << 3 | mantissa;
  const uint32_t top = 31 - __clz(int(mantissa));
  return top << 3 | ((mantissa << (3 - top)) & 7);
}

// 16 codes of a row, four bits each, and its scale in E5M3; zeros where there is none.
struct Block {
  uint64_t codes = 0;
  uint32_t scale = 0;
};

__device__ Block block_at(const Sources& sources, int row, int column, int cols) {
  const Source* s = source_of(sources, row);
  if (s == nullptr || column >= cols) return {};
  const int64_t i = int64_t(row - s->first_row) * cols + column;
  const uint32_t scale = s->block_scales[i / nvfp4::kBlock];
  if ((scale & 0x7f) == 0) return {};
  uint64_t codes = *reinterpret_cast<const uint64_t*>(s->values + i / 2);
  if (scale & 0x80) codes ^= 0x8888888888888888ull;
  return {.codes = codes, .scale = e5m3_of(scale & 0x7f)};
}

__device__ uint32_t code_at(const Block& block, int column) {
  return uint32_t(block.codes >> (4 * column)) & 15;
}

__global__ void pack_nvfp4_kernel(PackTask task, const __grid_constant__ Sources sources) {
  const PackedMatrices& w = task.to;
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int lane = int(index % 32), chunk = int(index / 32 % 2);
  const int64_t place = index / 64;  // of the unit
  const int tile = task.first_tile + int(place / w.units), unit = int(place % w.units);
  if (tile >= task.end_tile) return;
  const int g = lane / 4, column = unit * 128 + chunk * 64 + lane % 4 * 16;
  const Block low = block_at(sources, row_at(w, tile, g), column, w.cols);
  const Block high = block_at(sources, row_at(w, tile, g + 8), column, w.cols);
  uint32_t words[4];
  for (int j = 0; j < 4; ++j) {
    words[j] = 0;
    for (int odd = 0; odd < 2; ++odd) {
      const int k = 4 * j + odd, half = 16 * odd, other_half = 16 - half;
      const uint32_t a0 = code_at(low, k), a1 = code_at(high, k);
      const uint32_t a2 = code_at(low, k + 2), a3 = code_at(high, k + 2);
      words[j] |= ((a0 & 7) << 6 | a0 >> 3 << 15) << half;
      words[j] |= ((a1 & 7) | a1 >> 3 << 9) << half;
      words[j] |= a2 >> 3 << 5 << half | (a2 & 7) << 12 << other_half;
      words[j] |= ((a3 & 1) << 10 | (a3 >> 1 & 3) << 3 | a3 >> 3 << 11) << half;
    }
  }
  uint8_t* to = task.data + (int64_t(tile) * w.units + unit) * w.unit_bytes;
  *reinterpret_cast<uint4*>(to + chunk * 512 + lane * 16) =
      make_uint4(words[0], words[1], words[2], words[3]);
  *reinterpret_cast<uint16_t*>(to + 1024 + lane * 4 + chunk * 2) =
      uint16_t(low.scale | high.scale << 8);
}

// Rounds to nearest even.
__device__ uint32_t bf16_of(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bits >> 16 | 0x40;
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

// Packed as BF16 or F32.
__global__ void pack_values_kernel(PackTask task, const __grid_constant__ Sources sources) {
  const PackedMatrices& w = task.to;
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int lane = int(index % 32), j = int(index / 32 % 4);
  const int64_t place = index / 128;
  const int tile = task.first_tile + int(place / w.units), unit = int(place % w.units);
  if (tile >= task.end_tile) return;
  const int column = unit * 64 + lane % 4 * 16 + j * 4;
  uint32_t words[4] = {}, rests[4] = {};
  for (int half = 0; half < 2; ++half) {
    const int row = row_at(w, tile, lane / 4 + 8 * half);
    const Source* s = source_of(sources, row);
    for (int k = 0; s != nullptr && k < 4 && column + k < w.cols; ++k) {
      const float value = value_at(*s, row, column + k, w.cols);
      const uint32_t rounded = bf16_of(value);
      words[half + k / 2 * 2] |= rounded << (k % 2 * 16);
      rests[half + k / 2 * 2] |= bf16_of(value - __uint_as_float(rounded << 16)) << (k % 2 * 16);
    }
  }
  uint8_t* to = task.data + (int64_t(tile) * w.units + unit) * w.unit_bytes + j * 512 + lane * 16;
  *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
  if (w.format == Format::kF32) {
    *reinterpret_cast<uint4*>(to + 2048) = make_uint4(rests[0], rests[1], rests[2], rests[3]);
  }
}

// A decoded code is w * 2^-126 and its scale s * 2^106 (fragments.cuh).
constexpr float kNvfp4Factor = 0x1p20f;

__global__ void pack_factors_kernel(PackTask task, const __grid_constant__ Sources sources) {
  const int i = task.first_tile * kTileRows + int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= task.end_tile * kTileRows) return;
  const Source* s = source_of(sources, row_at(task.to, i / kTileRows, i % kTileRows));
  const float scale = s == nullptr ? 1.0f : s->global_scale;
  task.factors[i] = task.to.format == Format::kNvfp4 ? scale * kNvfp4Factor : scale;
}

// NVFP4 where all parts are, BF16 where that holds their values but for a factor a row; else F32,
// which holds 16 bits of any value.
Format packed_format(const Weight& w) {
  const auto all = [&](auto&& is) {
    return std::ranges::all_of(
        w.parts, [&](const WeightPart& p) { return p.input_scales == nullptr && is(p.format); });
  };
  if (all([](Format f) { return f == Format::kNvfp4; })) return Format::kNvfp4;
  if (all([](Format f) { return f == Format::kBF16 || f == Format::kFp8; })) return Format::kBF16;
  return Format::kF32;
}

PackedMatrices layout_of(const Weight& host, bool halves) {
  PackedMatrices w{.format = packed_format(host),
                   .rows = int(host.rows),
                   .cols = int(host.cols),
                   .halves = halves};
  const int unit_cols = w.format == Format::kNvfp4 ? 128 : 64;
  w.unit_bytes = w.format == Format::kNvfp4 ? 1152 : w.format == Format::kBF16 ? 2048 : 4096;
  // Halves are padded to 16 rows each, as wide as the next matrix takes its inputs.
  w.tiles = halves ? (w.rows / 2 + 15) / 16 * 2 : (w.rows + 15) / 16;
  w.units = (w.cols + unit_cols - 1) / unit_cols;
  w.tile_bytes = uint32_t(w.units * w.unit_bytes);
  const int most = w.format == Format::kF32 ? kMaxSlices / 2 : kMaxSlices;
  w.units_per_slice = (w.units + most - 1) / most;
  w.slices = (w.units + w.units_per_slice - 1) / w.units_per_slice;
  return w;
}

// Brings rows of a weight to the card, as stored or decoded where they are packed as F32, and packs
// them there: as many at a time as there is room for.
class Packer {
 public:
  Packer(const Uploads& to, const Weight& host, const PackedMatrices& packed)
      : to_(to), host_(host), packed_(packed) {
    const int64_t cols = host.cols;
    row_bytes_ = packed.format == Format::kNvfp4  ? cols / 2 + cols / nvfp4::kBlock
                 : packed.format == Format::kBF16 ? 2 * cols
                                                  : 4 * cols;
    room_ = std::max(int64_t(Feed::kRawBytes), task_bytes(1));
    raw_ = to.feed.raw(size_t(room_));
  }

  int tiles_at_once() const {
    int64_t part_rows = host_.total_rows();  // of the smallest
    for (const WeightPart& part : host_.parts) part_rows = std::min(part_rows, part.rows);
    // A range of rows, two where there are halves, begins and ends within parts.
    const int64_t by_sources = (kMaxSources - 4) * part_rows / kTileRows;
    const int64_t by_room = (room_ - kSlack) / (kTileRows * row_bytes_);
    return int(std::clamp<int64_t>(std::min(by_sources, by_room), 1, packed_.tiles));
  }

  // Tiles of matrix `matrix` of the stack, at most tiles_at_once().
  void add(const PackTask& task, int64_t matrix) {
    if (used_ + task_bytes(task.end_tile - task.first_tile) > room_) flush();
    packings_.push_back({.task = task});
    const int64_t base = matrix * packed_.rows;
    if (packed_.halves) {
      const int64_t half = packed_.rows / 2, end = std::min<int64_t>(half, task.end_tile * 8);
      const int64_t first = std::min<int64_t>(end, task.first_tile * 8);
      add_rows(base + first, base + end, first);
      add_rows(base + half + first, base + half + end, half + first);
    } else {
      const int64_t first = task.first_tile * 16;
      const int64_t end = std::min<int64_t>(packed_.rows, task.end_tile * 16);
      add_rows(base + first, base + end, first);
    }
  }

  void flush() {
    to_.feed.send(raw_, pieces_, to_.stream);
    for (const Packing& packing : packings_) launch(packing);
    pieces_.clear();
    packings_.clear();
    decoded_.clear();
    used_ = 0;
  }

 private:
  struct Packing {
    PackTask task{};
    Sources sources{};
  };
  static constexpr int64_t kSlack = 2 * kMaxSources * 256;  // every source starts aligned

  int64_t task_bytes(int64_t tiles) const { return tiles * kTileRows * row_bytes_ + kSlack; }

  // The rows [first, end) of the stack, numbered from `matrix_row` in their matrix.
  void add_rows(int64_t first, int64_t end, int64_t matrix_row) {
    if (packed_.format == Format::kF32) return add_decoded(first, end, matrix_row);
    for (const WeightPart& part : slice_rows(host_, first, end - first)) {
      Source& s = add_source(part.format, matrix_row, part.rows);
      s.global_scale = part.global_scale;
      const int64_t values = part.rows * host_.cols;
      if (part.format == Format::kNvfp4) {
        s.values = add_piece(part.values, values / 2);
        s.block_scales = add_piece(part.block_scales, values / nvfp4::kBlock);
      } else {
        s.values = add_piece(part.values, part.format == Format::kFp8 ? values : 2 * values);
      }
      matrix_row += part.rows;
    }
  }

  void add_decoded(int64_t first, int64_t end, int64_t matrix_row) {
    std::vector<float>& rows = decoded_.emplace_back(size_t((end - first) * host_.cols));
    for (int64_t r = first; r < end; ++r) {
      decode_row(host_, r, rows.data() + (r - first) * host_.cols);
    }
    Source& s = add_source(Format::kF32, matrix_row, end - first);
    s.values = add_piece(rows.data(), int64_t(rows.size() * sizeof(float)));
  }

  Source& add_source(Format format, int64_t matrix_row, int64_t rows) {
    Sources& sources = packings_.back().sources;
    CHECK(sources.count < kMaxSources, "%s: too many parts in a matrix", host_.name.c_str());
    Source& s = sources.source[sources.count++];
    s.format = format;
    s.first_row = int(matrix_row);
    s.rows = int(rows);
    return s;
  }

  // Where the bytes will lie on the card.
  const uint8_t* add_piece(const void* from, int64_t bytes) {
    pieces_.push_back({.from = from, .bytes = size_t(bytes), .at = size_t(used_)});
    used_ += (bytes + 255) / 256 * 256;
    return raw_ + pieces_.back().at;
  }

  template <typename Kernel>
  void launch(const Packing& packing, Kernel kernel, int64_t threads) const {
    const unsigned blocks = unsigned((threads + kThreads - 1) / kThreads);
    kernel<<<blocks, kThreads, 0, to_.stream>>>(packing.task, packing.sources);
    CUDA_CHECK(cudaGetLastError());
  }

  void launch(const Packing& packing) const {
    const int64_t tiles = packing.task.end_tile - packing.task.first_tile;
    if (packed_.format == Format::kNvfp4) {
      launch(packing, pack_nvfp4_kernel, tiles * packed_.units * 64);
    } else {
      launch(packing, pack_values_kernel, tiles * packed_.units * 128);
    }
    launch(packing, pack_factors_kernel, tiles * kTileRows);
  }

  const Uploads& to_;
  const Weight& host_;
  const PackedMatrices& packed_;
  int64_t row_bytes_ = 0, room_ = 0;
  uint8_t* raw_ = nullptr;
  int64_t used_ = 0;
  std::vector<Piece> pieces_;
  std::vector<Packing> packings_;
  std::deque<std::vector<float>> decoded_;
};

}  // namespace

std::shared_ptr<const void> pack_matrices(const Uploads& to, const Weight& host, bool halves) {
  CHECK(!halves || host.rows % 2 == 0, "%s has %ld rows", host.name.c_str(), long(host.rows));
  auto packed = std::make_shared<PackedMatrices>(layout_of(host, halves));
  PackedMatrices& w = *packed;
  const size_t matrix_bytes = size_t(w.tiles) * w.tile_bytes;
  auto* data = static_cast<uint8_t*>(to.arena.allocate(size_t(host.count) * matrix_bytes));
  const size_t factors = size_t(w.tiles) * kTileRows;
  auto* scales =
      static_cast<float*>(to.arena.allocate(size_t(host.count) * factors * sizeof(float)));
  w.data = data;
  w.factors = scales;

  Packer packer(to, host, w);
  const int tiles_at_once = packer.tiles_at_once();
  for (int64_t m = 0; m < host.count; ++m) {
    for (int first = 0; first < w.tiles; first += tiles_at_once) {
      packer.add({.to = w,
                  .data = data + size_t(m) * matrix_bytes,
                  .factors = scales + size_t(m) * factors,
                  .first_tile = first,
                  .end_tile = std::min(w.tiles, first + tiles_at_once)},
                 m);
    }
  }
  packer.flush();
  return packed;
}

}  // namespace nibble::cuda
