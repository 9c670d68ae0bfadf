// Any text as the quantization config of config.json and as hf_quant_config.json beside it, asked
// about linears of every format: an Error or an answer.
#include <string>

#include "base/error.h"
#include "checkpoint/quantization_config.h"

namespace {

using nibble::Format;

constexpr const char* kNames[] = {"lm_head", "model.layers.10.mlp.experts.47.down_proj",
                                  "model.layers.0.self_attn.kv_a_proj_with_mqa", ""};

void check_linears(const nibble::QuantizationConfig& config) {
  for (const char* name : kNames) {
    for (const Format format : {Format::kBF16, Format::kNvfp4, Format::kFp8, Format::kInt4}) {
      for (const bool is_listed : {false, true}) {
        try {
          config.check({.name = name, .format = format, .group_size = 32, .is_listed = is_listed});
        } catch (const nibble::Error&) {
        }
      }
    }
  }
}

void read(const std::string& key, const std::string& text) {
  try {
    const auto file = nibble::JsonFile::parse("fuzz", "{\"" + key + "\": " + text + "}");
    check_linears(nibble::QuantizationConfig::parse(file));
  } catch (const nibble::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string text(reinterpret_cast<const char*>(bytes), size);
  read("quantization_config", text);
  // The layout of hf_quant_config.json, which may stand within config.json too.
  read("quantization_config", "{\"quantization\": " + text + "}");
  return 0;
}
