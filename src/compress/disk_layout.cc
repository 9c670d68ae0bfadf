#include "compress/disk_layout.h"

#include <cmath>
#include <limits>
#include <span>

#include "base/check.h"
#include "base/error.h"
#include "quant/nvfp4.h"

namespace nibble {
namespace {

using nlohmann::ordered_json;

// Engines choose their reader by this producer; the version is the layout's.
const ordered_json kProducer = {{"name", "modelopt"}, {"version", "0.47.0"}};

struct Names {  // of a linear's tensors
  const char* nvfp4_codes;
  const char* nvfp4_tensor_scale;
  const char* input_scale;
  std::vector<int64_t> scalar;
};

Names names_of(DiskFormat format) {
  if (format == DiskFormat::kModelOpt) {
    return {".weight", ".weight_scale_2", ".input_scale", {}};
  }
  return {".weight_packed", ".weight_global_scale", ".input_global_scale", {1}};
}

DType dtype_of(Format format) {
  return format == Format::kF32 ? DType::kF32 : DType::kBF16;
}

// Of any block scale, its 8 mantissas.
bool reads_alike(float scale, float reciprocal) {
  if (1.0f / reciprocal != scale || 1.0f / scale != reciprocal) return false;
  for (int mantissa = 8; mantissa < 16; ++mantissa) {
    if (float(mantissa) / reciprocal != float(mantissa) * scale) return false;
  }
  return true;
}

void write_scalar(const std::string& name, float value, CheckpointWriter& writer) {
  writer.write(name, &value, sizeof value);
}

// All of a layer's linears: a glob, or where only names and regular expressions count, one of
// these.
std::string all_of_layer(int layer, DiskFormat format) {
  const std::string number = std::to_string(layer);
  return format == DiskFormat::kModelOpt ? "model.layers." + number + "*"
                                         : "re:model\\.layers\\." + number + "\\..*";
}

// The linears that a config lists as left alone; routers are none, but engines expect them here.
std::vector<std::string> ignored(const Recipe& recipe, const GlmConfig& config) {
  std::vector<std::string> names;
  const auto add_kept = [&](const PlannedGroup& planned) {
    if (planned.precision != Precision::kKept) return;
    for (const Linear& linear : planned.group.linears) names.push_back(linear.name);
  };
  add_kept(recipe.lm_head);
  add_kept(recipe.embedding);
  for (int l = 0; l < config.num_layers; ++l) {
    if (!config.is_dense(l)) names.push_back("model.layers." + std::to_string(l) + ".mlp.gate");
    for (const PlannedGroup& planned : recipe.layers[size_t(l)]) add_kept(planned);
  }
  for (int l = config.num_layers; l < config.num_layers + config.mtp_layers; ++l) {
    names.push_back(all_of_layer(l, recipe.format));
  }
  return names;
}

ordered_json algorithm_of(const PlannedGroup& planned) {
  if (planned.precision == Precision::kFp8) return {{"quant_algo", "FP8"}};
  if (!planned.has_pre_quant_scale) return {{"quant_algo", "NVFP4"}, {"group_size", 16}};
  return {{"quant_algo", "NVFP4_AWQ"},
          {"group_size", 16},
          {"has_zero_point", false},
          {"pre_quant_scale", true}};
}

ordered_json quantized_layers(const Recipe& recipe) {
  ordered_json layers = ordered_json::object();
  recipe.for_each([&](const PlannedGroup& planned) {
    if (planned.precision == Precision::kKept) return;
    for (const Linear& linear : planned.group.linears) layers[linear.name] = algorithm_of(planned);
  });
  return layers;
}

ordered_json numbers(int bits, bool dynamic) {
  ordered_json json = {{"dynamic", dynamic}, {"num_bits", bits}, {"type", "float"}};
  if (bits == 4) json["group_size"] = 16;
  return json;
}

ordered_json modelopt_groups(const Recipe& recipe) {
  ordered_json group;
  if (recipe.calibrates()) group["input_activations"] = numbers(4, false);
  group["weights"] = numbers(4, false);
  group["targets"] = {"Linear"};
  return {{"group_0", group}};
}

ordered_json compressed_tensors_config(const Recipe& recipe, const GlmConfig& config) {
  const auto scheme = [](ordered_json dynamic) {
    return ordered_json{{"num_bits", 4},       {"type", "float"},
                        {"symmetric", true},   {"strategy", "tensor_group"},
                        {"group_size", 16},    {"dynamic", std::move(dynamic)},
                        {"observer", "minmax"}};
  };
  ordered_json group;
  group["weights"] = scheme(false);
  group["input_activations"] = recipe.calibrates() ? scheme("local") : ordered_json();
  group["output_activations"] = nullptr;
  group["targets"] = {"Linear"};
  group["format"] = "nvfp4-pack-quantized";
  return {{"quant_method", "compressed-tensors"},
          {"format", "nvfp4-pack-quantized"},
          {"quantization_status", "compressed"},
          {"config_groups", {{"group_0", group}}},
          {"ignore", ignored(recipe, config)},
          {"kv_cache_scheme", recipe.kv_cache_fp8 ? numbers(8, false) : ordered_json()}};
}

}  // namespace

std::vector<TensorPlan> plan_tensors(const Recipe& recipe, const PlannedGroup& planned) {
  const Names names = names_of(recipe.format);
  std::vector<TensorPlan> tensors;
  int64_t row = planned.group.first_row;
  for (const Linear& linear : planned.group.linears) {
    const std::string& x = linear.name;
    const int64_t n = linear.rows, k = planned.group.cols;
    switch (planned.precision) {
      case Precision::kKept:
        tensors.push_back(
            {x + ".weight", dtype_of(slice_rows(*planned.weight, row, n)[0].format), {n, k}});
        break;
      case Precision::kFp8:
        tensors.push_back({x + ".weight", DType::kF8E4M3, {n, k}});
        tensors.push_back({x + ".weight_scale", DType::kF32, {}});
        break;
      case Precision::kNvfp4:
        tensors.push_back({x + names.nvfp4_codes, DType::kU8, {n, k / 2}});
        tensors.push_back({x + ".weight_scale", DType::kF8E4M3, {n, k / nvfp4::kBlock}});
        tensors.push_back({x + names.nvfp4_tensor_scale, DType::kF32, names.scalar});
        break;
    }
    if (planned.has_input_scale) {
      tensors.push_back({x + names.input_scale, DType::kF32, names.scalar});
    }
    if (planned.has_pre_quant_scale) {
      tensors.push_back({x + ".pre_quant_scale", DType::kBF16, {k}});
    }
    row += linear.rows;
  }
  return tensors;
}

float stored_tensor_scale(const Recipe& recipe, const PlannedGroup& planned, float scale) {
  if (recipe.format == DiskFormat::kModelOpt) return scale;
  constexpr float kLeast = 0x1p-120f, kMost = 0x1p120f;
  if (scale < kLeast || scale > kMost) {
    throw Error(planned.group.linears[0].name +
                ".weight: its largest magnitude is out of range for the reciprocal scale of "
                "--format compressed-tensors; use modelopt");
  }
  float above = 1.0f / scale, below = above;
  while (!reads_alike(1.0f / above, above) && !reads_alike(1.0f / below, below)) {
    above = std::nextafter(above, std::numeric_limits<float>::max());
    below = std::nextafter(below, 0.0f);
  }
  return 1.0f / (reads_alike(1.0f / above, above) ? above : below);
}

void write_encoded(const Recipe& recipe, const PlannedGroup& planned, const Encoded& encoded,
                   CheckpointWriter& writer) {
  const LinearGroup& group = planned.group;
  CHECK(encoded.precision == planned.precision && encoded.rows == group.rows &&
            encoded.cols == group.cols,
        "%s", group.name().c_str());
  const Names names = names_of(recipe.format);
  const bool reciprocal = recipe.format == DiskFormat::kCompressedTensors;
  const auto scalar = [&](float scale) { return reciprocal ? 1.0f / scale : scale; };
  const bool nvfp4 = planned.precision == Precision::kNvfp4;
  const int64_t code_bytes = nvfp4 ? group.cols / 2 : group.cols;
  const int64_t scale_bytes = group.cols / nvfp4::kBlock;
  int64_t row = 0;
  for (const Linear& linear : group.linears) {
    const std::string& x = linear.name;
    writer.write(x + (nvfp4 ? names.nvfp4_codes : ".weight"),
                 encoded.codes.data() + row * code_bytes, linear.rows * code_bytes);
    if (nvfp4) {
      writer.write(x + ".weight_scale", encoded.scales.data() + row * scale_bytes,
                   linear.rows * scale_bytes);
    }
    write_scalar(x + (nvfp4 ? names.nvfp4_tensor_scale : ".weight_scale"),
                 scalar(encoded.tensor_scale), writer);
    if (planned.has_input_scale) {
      const float range = nvfp4::kE4M3Max * (nvfp4 ? nvfp4::kE2M1Max : 1);
      const float amax = encoded.input_amax > 0 ? encoded.input_amax : 1.0f;
      write_scalar(x + names.input_scale, scalar(amax / range), writer);
    }
    if (planned.has_pre_quant_scale) {
      writer.write(x + ".pre_quant_scale", encoded.input_scale.data(), group.cols * 2);
    }
    row += linear.rows;
  }
}

void write_stored(const Recipe& recipe, const PlannedGroup& planned, CheckpointWriter& writer) {
  const Names names = names_of(recipe.format);
  const bool nvfp4 = planned.precision == Precision::kNvfp4;
  const int64_t cols = planned.group.cols;
  int64_t row = planned.group.first_row;
  for (const Linear& linear : planned.group.linears) {
    const std::vector<WeightPart> parts = slice_rows(*planned.weight, row, linear.rows);
    const WeightPart& first = parts[0];
    std::vector<std::span<const uint8_t>> values, scales;
    for (const WeightPart& part : parts) {
      CHECK(part.format == first.format && part.global_scale == first.global_scale &&
                part.input_scales == nullptr && (part.format == Format::kNvfp4) == nvfp4,
            "%s", linear.name.c_str());
      const int64_t count = part.rows * cols;
      const int64_t value_bytes =
          nvfp4 ? count / 2 : count * int64_t(dtype_bytes(dtype_of(part.format)));
      values.emplace_back(part.values, size_t(value_bytes));
      if (nvfp4) scales.emplace_back(part.block_scales, size_t(count / nvfp4::kBlock));
    }
    writer.write(linear.name + (nvfp4 ? names.nvfp4_codes : ".weight"), values);
    if (nvfp4) {
      const bool reciprocal = recipe.format == DiskFormat::kCompressedTensors;
      writer.write(linear.name + ".weight_scale", scales);
      write_scalar(linear.name + names.nvfp4_tensor_scale,
                   reciprocal ? 1.0f / first.global_scale : first.global_scale, writer);
    }
    row += linear.rows;
  }
}

void write_unit_scales(const Recipe& recipe, const PlannedGroup& planned,
                       CheckpointWriter& writer) {
  if (recipe.format == DiskFormat::kModelOpt || planned.precision != Precision::kNvfp4) return;
  for (const Linear& linear : planned.group.linears) {
    write_scalar(linear.name + names_of(recipe.format).nvfp4_tensor_scale, 1.0f, writer);
  }
}

ordered_json quantization_config(const Recipe& recipe, const GlmConfig& config) {
  if (recipe.format == DiskFormat::kCompressedTensors) {
    return compressed_tensors_config(recipe, config);
  }
  const std::string label = recipe.label();
  ordered_json json;
  if (label == "NVFP4" || label == "W4A16_NVFP4") json["config_groups"] = modelopt_groups(recipe);
  if (label == "MIXED_PRECISION") {
    json["quantized_layers"] = quantized_layers(recipe);
  } else {
    json["ignore"] = ignored(recipe, config);
  }
  json["quant_algo"] = label;
  if (recipe.kv_cache_fp8) json["kv_cache_scheme"] = numbers(8, false);
  json["producer"] = kProducer;
  json["quant_method"] = "modelopt";
  return json;
}

ordered_json hf_quant_config(const Recipe& recipe, const GlmConfig& config) {
  const std::string label = recipe.label();
  ordered_json json;
  json["quant_algo"] = label;
  json["kv_cache_quant_algo"] = recipe.kv_cache_fp8 ? ordered_json("FP8") : ordered_json();
  if (label == "MIXED_PRECISION") {
    json["quantized_layers"] = quantized_layers(recipe);
  } else {
    json["group_size"] = 16;
    if (label == "NVFP4_AWQ") {
      json["has_zero_point"] = false;
      json["pre_quant_scale"] = true;
    }
    json["exclude_modules"] = ignored(recipe, config);
  }
  return {{"producer", kProducer}, {"quantization", json}};
}

}  // namespace nibble
