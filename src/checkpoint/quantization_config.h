// QuantizationConfig: what a checkpoint says about the formats of its linears. The tensors decide
// how a linear is read; this is what they are checked against.
//
//   config.json          quantization_config, quant_method "modelopt": quant_algo, ignore,
//                        quantized_layers; "compressed-tensors": config_groups, ignore
//   hf_quant_config.json quantization: quant_algo, exclude_modules, quantized_layers
//
// Labels are loose, so no more is read out of them than they can say: exporters before 0.45 call
// weight-only NVFP4 "NVFP4", AWQ drops group_size, and only linears are sure to be listed among the
// excluded, not routers, embeddings and experts in one tensor.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <regex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "checkpoint/json_file.h"
#include "quant/weight.h"

namespace nibble {

// How a linear was found to be stored, for the check.
struct FoundLinear {
  std::string name{};  // of the module: "model.layers.0.mlp.down_proj"
  Format format = Format::kBF16;
  int group_size = 0;      // kInt4
  bool is_listed = false;  // its exclusion would be listed: an ordinary linear
};

class QuantizationConfig {
 public:
  QuantizationConfig() = default;  // says nothing
  // Reads `config`, a parsed config.json, and `folder`/hf_quant_config.json where it is there.
  // Throws Error that names file and key: a method, an algorithm, a width or an option of the
  // weights that is not supported, wrong types, two files that disagree.
  static QuantizationConfig load(const std::filesystem::path& folder, const JsonFile& config);
  static QuantizationConfig parse(const JsonFile& config);  // of config.json alone

  bool empty() const { return sources_.empty(); }
  // "modelopt" or "compressed-tensors", as --quantization names it; "" when empty.
  const std::string& method() const { return method_; }
  // Whether an NVFP4 embedding's scale is weight_scale_2 * input_scale (the nvfp4_embed extension).
  bool scales_embedding_twice() const { return nvfp4_embedding_; }
  // Whether it asks engines for a cache in FP8: kv_cache_quant_algo "FP8", or a kv_cache_scheme of
  // 8-bit floats.
  bool wants_fp8_cache() const { return fp8_cache_; }

  // Throws Error when a linear is stored in another format than is said, is quantized though it is
  // excluded, or is not though it should be.
  void check(const FoundLinear& linear) const;

 private:
  struct Pattern {
    enum class Kind : uint8_t { kName, kGlob, kRegex, kAll };
    Kind kind = Kind::kAll;
    std::string text{};
    std::shared_ptr<const std::regex> regex{};  // kRegex: of what follows "re:"
    bool matches(const std::string& name) const;
  };
  struct Rule {
    Format format = Format::kBF16;
    int group_size = 0;  // 0: not said
  };
  // Thousands of names, a few patterns.
  template <typename Value>
  class Lookup {
   public:
    void add(const Pattern& pattern, Value value);
    // Of the name itself, of a module that it is within, of the first pattern; else what is for
    // all.
    const Value* find(const std::string& name) const;

   private:
    std::unordered_map<std::string, Value> names_{};
    std::vector<std::pair<Pattern, Value>> patterns_{};
    std::optional<Value> all_{};
  };
  struct Source {
    std::string place{};  // file and key
    Lookup<Rule> rules{};
    Lookup<std::string> excluded{};  // the entry
  };

  static Pattern modelopt_pattern(const std::string& text);
  static Pattern compressed_pattern(const std::string& text);
  static std::vector<Pattern> patterns(const JsonFile& file, const std::string& key,
                                       Pattern (*make)(const std::string&));
  static std::optional<Rule> modelopt_rule(const JsonFile& file, const std::string& key,
                                           const nlohmann::json& object);
  static void exclude(const std::vector<Pattern>& patterns, Source& source);
  void read_cache(const JsonFile& file, const std::string& key);
  void read_modelopt(const JsonFile& file, const std::string& key);
  void read_compressed(const JsonFile& file, const std::string& key);
  void check(const Source& source, const FoundLinear& linear) const;

  std::string method_{};
  std::string algorithm_{};  // ModelOpt's quant_algo
  bool fp8_cache_ = false;
  bool nvfp4_embedding_ = false;
  std::vector<Source> sources_{};
};

// "NVFP4", as messages call a format.
const char* format_name(Format format);

}  // namespace nibble
