// Typed reads from a JSON file of a checkpoint (config.json, generation_config.json, ...).
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace nibble {

class JsonFile {
 public:
  // Throws Error that names the file: missing, not JSON, not an object, nested deeper than 128,
  // larger than 64 MiB, a key twice in one object.
  static JsonFile load(const std::filesystem::path& path);
  static JsonFile parse(const std::string& name, const std::string& text);

  const nlohmann::json& root() const { return root_; }
  const std::string& name() const { return name_; }

  // A key is a dotted path ("rope_parameters.rope_theta"). A missing key or null gives nothing; a
  // value of the wrong type or outside [low, high] throws Error that names file, key, value and
  // what would be right.
  bool has(const std::string& key) const;
  const nlohmann::json* find(const std::string& key) const;
  std::optional<int64_t> integer(const std::string& key, int64_t low, int64_t high) const;
  std::optional<double> number(const std::string& key, double low, double high) const;
  std::optional<bool> boolean(const std::string& key) const;
  std::optional<std::string> string(const std::string& key) const;
  // One integer or a list of them.
  std::vector<int64_t> integers(const std::string& key, int64_t low, int64_t high) const;

  // The same for keys that must be there; Error names the missing key.
  int64_t required_integer(const std::string& key, int64_t low, int64_t high) const;
  double required_number(const std::string& key, double low, double high) const;

  [[noreturn]] void fail(const std::string& key, const std::string& what) const;

 private:
  int64_t checked_integer(const std::string& key, const nlohmann::json& value, int64_t low,
                          int64_t high) const;

  std::string name_;
  nlohmann::json root_;
};

}  // namespace nibble
