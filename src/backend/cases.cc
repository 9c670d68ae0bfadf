#include "backend/cases.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/create.h"
#include "base/numbers.h"
#include "quant/nvfp4.h"

namespace nibble {

std::vector<LinearCase> linear_cases() {
  std::vector<LinearCase> cases;
  for (const Format format :
       {Format::kBF16, Format::kNvfp4, Format::kF32, Format::kFp8, Format::kInt4}) {
    for (const int64_t rows : {0, 1, 2, 5, 6, 7, 8, 9, 13, 16, 17, 32, 33, 64, 65, 129}) {
      cases.push_back({rows, 48, 64, format});
    }
    cases.push_back({1, 1, 16, format});
    cases.push_back({3, 17, 48, format});
    cases.push_back({9, 63, 272, format, true});
    cases.push_back({1, 6144, 256, format});
    cases.push_back({4, 256, 1024, format, true});
    cases.push_back({70, 704, 256, format});
    cases.push_back({2, 576, 5120, format});
    cases.push_back({66, 40, 2560, format, true});
    cases.push_back({40, 66, 2320, format, true});
    cases.push_back({64, 200, 640, format});
    cases.push_back({300, 144, 192, format});
  }
  cases.push_back({1, 3072, 2048, Format::kBF16});
  cases.push_back({48, 1536, 2048, Format::kBF16});
  cases.push_back({3, 20, 33, Format::kBF16});  // NVFP4 has no odd K
  cases.push_back({1, 5, 1, Format::kBF16});
  cases.push_back({5, 7, 33, Format::kFp8});
  for (const Format format : {Format::kBF16, Format::kNvfp4, Format::kFp8, Format::kInt4}) {
    for (const int64_t rows : {1, 6, 33}) cases.push_back({rows, 37, 64, format, false, true});
    cases.push_back({70, 704, 256, format, true, true});
  }
  return cases;
}

std::vector<ExpertsCase> experts_cases() {
  std::vector<ExpertsCase> cases;
  for (const Format format : {Format::kBF16, Format::kNvfp4}) {
    for (const int64_t rows : {0, 1, 3, 40}) cases.push_back({rows, 16, 4, 256, 64, format});
    cases.push_back({5, 3, 3, 48, 16, format});
    cases.push_back({9, 48, 4, 512, 96, format});
    cases.push_back({8, 70, 6, 64, 32, format});
    cases.push_back({8, 40, 9, 64, 32, format});
    cases.push_back({64, 6, 4, 32, 80, format});
    cases.push_back({300, 8, 2, 64, 32, format});
    cases.push_back({70, 3, 2, 288, 2112, format});
  }
  cases.push_back({7, 5, 2, 40, 24, Format::kBF16});
  cases.push_back({9, 4, 2, 64, 32, Format::kFp8});
  cases.push_back({9, 5, 3, 64, 48, Format::kInt4});
  for (const Format format : {Format::kNvfp4, Format::kFp8, Format::kInt4}) {
    for (const int64_t rows : {1, 40}) cases.push_back({rows, 5, 4, 256, 64, format, true});
  }
  return cases;
}

std::vector<AttentionCase> attention_cases() {
  std::vector<AttentionCase> cases;
  for (const KvFormat format :
       {KvFormat::kF32, KvFormat::kBF16, KvFormat::kFp8, KvFormat::kInt8, KvFormat::kNvfp4}) {
    cases.push_back({4, format, 16, {{0, 1}}});
    cases.push_back({4, format, 16, {{0, 37}}});
    cases.push_back({4, format, 16, {{63, 1}, {64, 1}, {200, 1}}});
    cases.push_back({4, format, 5, {{7, 3}, {0, 20}, {129, 1}}});
    cases.push_back({20, format, 64, {{100, 2}, {5, 1}}});
    cases.push_back({2, format, 16, {{7, 3}, {0, 130}, {64, 65}}, Format::kBF16, false, true});
  }
  cases.push_back({1, KvFormat::kInt8, 64, {{4050, 100}}, Format::kNvfp4, false, true});
  cases.push_back({1, KvFormat::kBF16, 16, {{1100, 1}}});
  cases.push_back({3, KvFormat::kBF16, 16, {{600, 70}}});
  for (const Format format : {Format::kNvfp4, Format::kFp8, Format::kInt4}) {
    cases.push_back({4, KvFormat::kBF16, 16, {{20, 3}}, format});
    cases.push_back({4, KvFormat::kBF16, 16, {{20, 3}}, format, true});
  }
  cases.push_back({4, KvFormat::kBF16, 16, {}});
  return cases;
}

std::vector<float> random_floats(int64_t count, std::mt19937& random, float scale) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(random);
  return values;
}

MlaShape mla_shape(const AttentionCase& c) {
  return {.heads = c.heads,
          .nope_dim = 192,
          .rope_dim = 64,
          .value_dim = 256,
          .latent_dim = 512,
          .rope_theta = 1e6f,
          .norm_eps = 1e-6f};
}

std::vector<float> random_activations(int64_t count, DType dtype, std::mt19937& random,
                                      float scale) {
  std::vector<float> values = random_floats(count, random, scale);
  if (dtype == DType::kBF16) {
    for (float& v : values) v = bf16_to_float(float_to_bf16(v));
  }
  return values;
}

std::unique_ptr<Backend> test_backend(const std::string& name) {
  const bool exact = name == "cpu_exact";
  return create_backend({.device = exact ? "cpu" : name, .threads = 2, .exact = exact});
}

bool is_here(const std::string& name) {
  return !name.starts_with("cuda") || has_cuda_device();
}

namespace {

struct OwnedBytes {
  std::vector<uint8_t> values, scales;
  std::vector<float> input_scales;
};

std::vector<uint8_t> bf16_bytes(const std::vector<float>& floats) {
  std::vector<uint8_t> bytes(floats.size() * 2);
  for (size_t i = 0; i < floats.size(); ++i) {
    const uint16_t bits = float_to_bf16(floats[i]);
    std::memcpy(bytes.data() + 2 * i, &bits, 2);
  }
  return bytes;
}

std::vector<uint8_t> random_values(Format format, int64_t count, float deviation,
                                   std::mt19937& random) {
  if (format == Format::kBF16) return bf16_bytes(random_floats(count, random, deviation));
  std::vector<uint8_t> bytes;
  if (format == Format::kF32) {
    const std::vector<float> floats = random_floats(count, random, deviation);
    bytes.resize(floats.size() * 4);
    std::memcpy(bytes.data(), floats.data(), bytes.size());
    return bytes;
  }
  bytes.resize(size_t(format == Format::kFp8 ? count : count / 2));
  for (uint8_t& byte : bytes) byte = uint8_t(random());
  if (format == Format::kFp8) {  // up to 15 in both signs, no NaN
    for (uint8_t& byte : bytes) byte = uint8_t((byte & 0x80) | byte % 0x58);
  }
  return bytes;
}

constexpr int kInt4Group = 16;

// Of `rows` rows: E4M3 between 0.25 and 30, or BF16 groups of INT4.
std::vector<uint8_t> random_scales(Format format, int64_t rows, int64_t cols, float deviation,
                                   std::mt19937& random) {
  if (format == Format::kInt4) {
    std::vector<float> scales = random_floats(rows * cols / kInt4Group, random, deviation / 4);
    for (float& scale : scales) scale = std::fabs(scale) + deviation / 64;
    return bf16_bytes(scales);
  }
  std::vector<uint8_t> scales(size_t(format == Format::kNvfp4 ? rows * cols / nvfp4::kBlock : 0));
  for (uint8_t& scale : scales) scale = uint8_t(0x28 + random() % 0x30);
  return scales;
}

}  // namespace

Weight random_weight(const std::string& name, Use use, Format format, int64_t count, int64_t rows,
                     int64_t cols, std::mt19937& random, bool input_scales) {
  Weight w{.name = name, .use = use, .count = count, .rows = rows, .cols = cols};
  auto owned = std::make_shared<OwnedBytes>();
  const int64_t total = count * rows;
  const float deviation = 1 / std::sqrt(float(cols));
  owned->values = random_values(format, total * cols, deviation, random);
  owned->scales = random_scales(format, total, cols, deviation, random);
  const int64_t split = total > 1 ? total / 2 : total;
  const int64_t num_parts = (total + split - 1) / split;
  if (input_scales) {
    owned->input_scales = random_floats(num_parts * cols, random, 0.25f);
    for (float& scale : owned->input_scales) scale = std::exp(scale);
  }
  for (int64_t p = 0; p < num_parts; ++p) {
    const int64_t first = p * split;
    const auto share = [&](const std::vector<uint8_t>& bytes) {
      return bytes.data() + first * int64_t(bytes.size()) / total;
    };
    WeightPart part{.format = format, .rows = std::min(split, total - first)};
    part.values = share(owned->values);
    if (!owned->scales.empty()) part.block_scales = share(owned->scales);
    if (format == Format::kNvfp4 || format == Format::kFp8) {
      part.global_scale = deviation * (p == 0 ? 0.11f : 0.07f);
    }
    if (format == Format::kInt4)
      part.group_size = kInt4Group, part.group_scale_dtype = DType::kBF16;
    if (input_scales) {
      part.input_scales = reinterpret_cast<const uint8_t*>(owned->input_scales.data() + p * cols);
    }
    w.parts.push_back(part);
  }
  w.source = owned;
  return w;
}

Weight float_weight(const std::string& name, std::vector<float> values) {
  auto owned = std::make_shared<std::vector<float>>(std::move(values));
  Weight w{.name = name, .use = Use::kVector, .rows = 1, .cols = int64_t(owned->size())};
  w.parts = {{.format = Format::kF32,
              .rows = 1,
              .values = reinterpret_cast<const uint8_t*>(owned->data())}};
  w.source = owned;
  return w;
}

DeviceMatrix::DeviceMatrix(Backend& backend, int64_t rows, int64_t cols, DType dtype)
    : backend_(backend),
      tensor_(backend.allocate(size_t(rows * cols) * dtype_bytes(dtype)), dtype, rows, cols) {}

DeviceMatrix::DeviceMatrix(Backend& backend, int64_t rows, int64_t cols,
                           const std::vector<float>& values, DType dtype)
    : DeviceMatrix(backend, rows, cols, dtype) {
  CHECK(int64_t(values.size()) == rows * cols);
  if (dtype == DType::kBF16) {
    std::vector<uint16_t> bits(values.size());
    std::ranges::transform(values, bits.begin(), float_to_bf16);
    backend_.write(tensor_.data, bits.data(), bits.size() * sizeof(uint16_t));
  } else {
    backend_.write(tensor_.data, values.data(), values.size() * sizeof(float));
  }
}

DeviceMatrix::~DeviceMatrix() {
  backend_.free(tensor_.data);
}

std::vector<float> DeviceMatrix::floats() const {
  std::vector<float> host(size_t(tensor_.rows * tensor_.cols));
  if (tensor_.dtype == DType::kBF16) {
    std::vector<uint16_t> bits(host.size());
    backend_.read(tensor_.data, bits.data(), bits.size() * sizeof(uint16_t));
    std::ranges::transform(bits, host.begin(), bf16_to_float);
    return host;
  }
  backend_.read(tensor_.data, host.data(), host.size() * sizeof(float));
  return host;
}

std::vector<int32_t> DeviceMatrix::ints() const {
  std::vector<int32_t> host(size_t(tensor_.rows * tensor_.cols));
  backend_.read(tensor_.data, host.data(), host.size() * sizeof(int32_t));
  return host;
}

double storage_error(DType dtype) {
  return dtype == DType::kBF16 ? 0x1p-8 : 0;
}

double product_error(int64_t inputs, DType input_dtype) {
  const double sum = double(inputs + 2) * 0x1p-24;
  if (input_dtype == DType::kI16) return sum + std::sqrt(double(inputs)) / 65278;
  return input_dtype == DType::kBF16 ? sum + 0x1p-8 : sum;
}

}  // namespace nibble
