#include "checkpoint/quantization_config.h"

#include <fnmatch.h>

#include "base/error.h"

namespace nibble {
namespace {

using nlohmann::json;

constexpr char kHfFile[] = "hf_quant_config.json";
constexpr size_t kLongestRegexBytes = 256;  // nesting recurses

const json& at(const JsonFile& file, const std::string& key) {
  return *file.find(key);
}

std::string as_string(const JsonFile& file, const std::string& key, const json& value) {
  if (!value.is_string()) file.fail(key, "must hold strings");
  return value.get<std::string>();
}

// The format of a group of compressed-tensors, from its `weights`.
std::pair<Format, int> compressed_format(const JsonFile& file, const std::string& key) {
  const int64_t bits = file.required_integer(key + ".num_bits", 1, 64);
  const std::string type = file.string(key + ".type").value_or("int");
  const int group = int(file.integer(key + ".group_size", -1, 1 << 20).value_or(0));
  if (bits == 4 && type == "float") return {Format::kNvfp4, group};
  if (bits == 8 && type == "float") return {Format::kFp8, 0};
  if (bits == 4 && type == "int") {
    if (!file.boolean(key + ".symmetric").value_or(true)) {
      file.fail(key + ".symmetric", "is false; only symmetric INT4 is supported");
    }
    if (file.has(key + ".actorder") && at(file, key + ".actorder") != json("weight") &&
        at(file, key + ".actorder") != json("static")) {
      file.fail(key + ".actorder", "reorders columns, which is not supported");
    }
    return {Format::kInt4, std::max(group, 0)};
  }
  file.fail(key, "has num_bits " + std::to_string(bits) + " of type " + type +
                     "; NVFP4 (4, float), FP8 (8, float) and INT4 (4, int) are supported");
}

}  // namespace

const char* format_name(Format format) {
  switch (format) {
    case Format::kF32:
      return "F32";
    case Format::kBF16:
      return "BF16";
    case Format::kNvfp4:
      return "NVFP4";
    case Format::kFp8:
      return "FP8";
    case Format::kInt4:
      return "INT4";
  }
  return "";
}

bool QuantizationConfig::Pattern::matches(const std::string& name) const {
  switch (kind) {
    case Kind::kName:
      return name == text;
    case Kind::kGlob:
      return fnmatch(text.c_str(), name.c_str(), 0) == 0;
    case Kind::kRegex:
      return std::regex_search(name, *regex, std::regex_constants::match_continuous);
    case Kind::kAll:
      return true;
  }
  return false;
}

template <typename Value>
void QuantizationConfig::Lookup<Value>::add(const Pattern& pattern, Value value) {
  if (pattern.kind == Pattern::Kind::kAll) {
    all_ = std::move(value);
  } else if (pattern.kind == Pattern::Kind::kName) {
    names_.insert_or_assign(pattern.text, std::move(value));
  } else {
    patterns_.emplace_back(pattern, std::move(value));
  }
}

template <typename Value>
const Value* QuantizationConfig::Lookup<Value>::find(const std::string& name) const {
  for (size_t end = name.size(); end != std::string::npos && end > 0;
       end = name.rfind('.', end - 1)) {
    const auto found = names_.find(name.substr(0, end));
    if (found != names_.end()) return &found->second;
  }
  for (const auto& [pattern, value] : patterns_) {
    if (pattern.matches(name)) return &value;
  }
  return all_ ? &*all_ : nullptr;
}

void QuantizationConfig::exclude(const std::vector<Pattern>& patterns, Source& source) {
  for (const Pattern& pattern : patterns) source.excluded.add(pattern, pattern.text);
}

QuantizationConfig::Pattern QuantizationConfig::modelopt_pattern(const std::string& text) {
  const bool glob = text.find_first_of("*?[") != std::string::npos;
  return {glob ? Pattern::Kind::kGlob : Pattern::Kind::kName, text};
}

// The matcher is libstdc++'s that takes no exponential time; repetitions in braces would multiply
// its states.
QuantizationConfig::Pattern QuantizationConfig::compressed_pattern(const std::string& text) {
  if (!text.starts_with("re:")) return {Pattern::Kind::kName, text};
  if (text.size() > kLongestRegexBytes) throw std::regex_error(std::regex_constants::error_space);
  if (text.find('{') != std::string::npos) {
    throw std::regex_error(std::regex_constants::error_complexity);
  }
  constexpr auto kSyntax = std::regex::ECMAScript | std::regex_constants::__polynomial;
  return {Pattern::Kind::kRegex, text, std::make_shared<std::regex>(text.substr(3), kSyntax)};
}

std::vector<QuantizationConfig::Pattern> QuantizationConfig::patterns(
    const JsonFile& file, const std::string& key, Pattern (*make)(const std::string&)) {
  std::vector<Pattern> all;
  if (!file.has(key)) return all;
  if (!at(file, key).is_array()) file.fail(key, "must be a list of names");
  for (const json& item : at(file, key)) {
    const std::string text = as_string(file, key, item);
    try {
      all.push_back(make(text));
    } catch (const std::regex_error& e) {
      file.fail(key, "has \"" + text.substr(0, 100) +
                         "\", which is not a regular expression of at most " +
                         std::to_string(kLongestRegexBytes) +
                         " bytes without {} and back references: " + e.what());
    }
  }
  return all;
}

// Of {"quant_algo", "group_size"}; none for null, which is what is not quantized.
std::optional<QuantizationConfig::Rule> QuantizationConfig::modelopt_rule(const JsonFile& file,
                                                                          const std::string& key,
                                                                          const json& object) {
  if (!object.is_object()) file.fail(key, "must hold objects");
  const auto algorithm = object.find("quant_algo");
  if (algorithm == object.end() || algorithm->is_null()) return std::nullopt;
  const std::string name = as_string(file, key + ".quant_algo", *algorithm);
  if (name == "FP8") return Rule{.format = Format::kFp8};
  if (name != "NVFP4" && name != "NVFP4_AWQ" && name != "W4A16_NVFP4") {
    file.fail(key + ".quant_algo", "is \"" + name +
                                       "\"; NVFP4, NVFP4_AWQ, W4A16_NVFP4, FP8 and "
                                       "MIXED_PRECISION of these are supported");
  }
  const auto group = object.find("group_size");
  if (group != object.end() && !group->is_null() && *group != 16) {
    file.fail(key + ".group_size", "is " + group->dump() + "; NVFP4 has groups of 16");
  }
  return Rule{.format = Format::kNvfp4};
}

void QuantizationConfig::read_cache(const JsonFile& file, const std::string& key) {
  fp8_cache_ |= file.string(key + ".kv_cache_quant_algo").value_or("") == "FP8";
  const std::string scheme = key + ".kv_cache_scheme";
  if (!file.has(scheme)) return;
  fp8_cache_ |= file.integer(scheme + ".num_bits", 1, 64).value_or(0) == 8 &&
                file.string(scheme + ".type").value_or("") == "float";
}

void QuantizationConfig::read_modelopt(const JsonFile& file, const std::string& key) {
  const json& object = at(file, key);
  const std::string algorithm = file.string(key + ".quant_algo").value_or("");
  if (!sources_.empty() && algorithm != algorithm_) {
    file.fail(key + ".quant_algo", "is \"" + algorithm + "\", but " + sources_[0].place +
                                       " says \"" + algorithm_ + "\"");
  }
  method_ = "modelopt";
  read_cache(file, key);
  algorithm_ = algorithm;
  nvfp4_embedding_ |= file.boolean(key + ".nvfp4_embed").value_or(false);
  Source source{.place = file.name() + ": " + key};
  for (const char* list : {".exclude_modules", ".ignore"}) {
    exclude(patterns(file, key + list, modelopt_pattern), source);
  }
  if (algorithm != "MIXED_PRECISION") {
    if (const auto rule = modelopt_rule(file, key, object)) source.rules.add({}, *rule);
    sources_.push_back(std::move(source));
    return;
  }
  const std::string layers = key + ".quantized_layers";
  if (!file.has(layers)) return;  // config.json may leave the list to hf_quant_config.json
  if (!at(file, layers).is_object()) file.fail(layers, "must be an object");
  for (const auto& [name, entry] : at(file, layers).items()) {
    if (const auto rule = modelopt_rule(file, layers, entry)) {
      source.rules.add(modelopt_pattern(name), *rule);
    }
  }
  sources_.push_back(std::move(source));
}

void QuantizationConfig::read_compressed(const JsonFile& file, const std::string& key) {
  method_ = "compressed-tensors";
  read_cache(file, key);
  Source source{.place = file.name() + ": " + key};
  exclude(patterns(file, key + ".ignore", compressed_pattern), source);
  const std::string groups = key + ".config_groups";
  if (!file.has(groups) || !at(file, groups).is_object()) file.fail(groups, "must be an object");
  for (const auto& [name, group] : at(file, groups).items()) {
    if (name.find('.') != std::string::npos) file.fail(groups, "has a group named " + name);
    const std::string at_group = groups + "." + name;
    if (!file.has(at_group + ".weights")) continue;
    const auto [format, group_size] = compressed_format(file, at_group + ".weights");
    if (format == Format::kNvfp4 && group_size != 16) {
      file.fail(at_group + ".weights.group_size", "must be 16 for NVFP4");
    }
    for (const Pattern& target : patterns(file, at_group + ".targets", compressed_pattern)) {
      source.rules.add(target.text == "Linear" ? Pattern() : target, {format, group_size});
    }
  }
  sources_.push_back(std::move(source));
}

QuantizationConfig QuantizationConfig::parse(const JsonFile& config) {
  QuantizationConfig result;
  const std::string key = "quantization_config";
  if (!config.has(key)) return result;
  const bool nested = config.has(key + ".quantization");
  const bool has_algorithm = nested || config.has(key + ".quant_algo");
  const std::string method =
      config.string(key + ".quant_method").value_or(has_algorithm ? "modelopt" : "");
  if (method.starts_with("modelopt")) {
    result.read_modelopt(config, nested ? key + ".quantization" : key);
  } else if (method == "compressed-tensors") {
    result.read_compressed(config, key);
  } else {
    config.fail(key + ".quant_method", "is \"" + method +
                                           "\"; \"modelopt\" and \"compressed-tensors\" are "
                                           "supported");
  }
  return result;
}

QuantizationConfig QuantizationConfig::load(const std::filesystem::path& folder,
                                            const JsonFile& config) {
  QuantizationConfig result = parse(config);
  std::error_code ignored;
  if (!std::filesystem::exists(folder / kHfFile, ignored)) return result;
  const JsonFile file = JsonFile::load(folder / kHfFile);
  if (!file.has("quantization")) file.fail("quantization", "is missing");
  if (result.method() == "compressed-tensors") {
    file.fail("quantization", "contradicts config.json, whose quant_method is compressed-tensors");
  }
  result.read_modelopt(file, "quantization");
  return result;
}

void QuantizationConfig::check(const FoundLinear& linear) const {
  for (const Source& source : sources_) check(source, linear);
}

void QuantizationConfig::check(const Source& source, const FoundLinear& linear) const {
  const auto fail = [&](const std::string& what) {
    throw Error(linear.name + " is stored as " + format_name(linear.format) + ", but " +
                source.place + " " + what);
  };
  const bool quantized = linear.format != Format::kBF16 && linear.format != Format::kF32;
  const std::string* const exclusion = source.excluded.find(linear.name);
  const Rule* const rule = source.rules.find(linear.name);
  if (!quantized) {
    if (linear.is_listed && exclusion == nullptr && rule != nullptr) {
      fail(std::string("says ") + format_name(rule->format) + " and does not exclude it");
    }
    return;
  }
  if (exclusion != nullptr) fail("excludes it (\"" + *exclusion + "\")");
  if (rule == nullptr) fail("does not say that it is quantized");
  if (rule->format != linear.format) fail(std::string("says ") + format_name(rule->format));
  if (linear.format == Format::kInt4 && rule->group_size > 0 &&
      rule->group_size != linear.group_size) {
    fail("says group_size " + std::to_string(rule->group_size) + ", and its scales are one per " +
         std::to_string(linear.group_size) + " columns");
  }
}

}  // namespace nibble
