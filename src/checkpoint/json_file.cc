#include "checkpoint/json_file.h"

#include <cmath>
#include <cstdio>
#include <set>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/mmap_file.h"

namespace nibble {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 128;
constexpr size_t kMaxBytes = size_t(64) << 20;

json parse_text(const std::string& name, std::string_view text) {
  if (text.size() > kMaxBytes) throw Error(name + ": larger than 64 MiB");
  std::vector<std::set<std::string>> keys;  // of each object that is open
  const auto guard = [&](int depth, json::parse_event_t event, json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
        keys.emplace_back();
        [[fallthrough]];
      case json::parse_event_t::array_start:
        if (depth >= kMaxDepth) throw Error(name + ": nested deeper than 128");
        break;
      case json::parse_event_t::object_end:
        keys.pop_back();
        break;
      case json::parse_event_t::key:
        if (!keys.back().insert(parsed.get_ref<const std::string&>()).second) {
          throw Error(name + ": the key " + escape_control(parsed.dump()) + " appears twice");
        }
        break;
      default:
        break;
    }
    return true;
  };
  json root;
  try {
    root = json::parse(text.begin(), text.end(), guard);
  } catch (const json::exception& e) {
    const std::string_view what = e.what();
    throw Error(name + ": not JSON: " + escape_control(what.substr(what.find("] ") + 2, 160)));
  }
  if (!root.is_object()) throw Error(name + ": must be a JSON object");
  return root;
}

std::string shown(const json& value) {
  constexpr size_t kShown = 60;
  const std::string text = value.dump(-1, ' ', true);
  return text.size() > kShown ? text.substr(0, kShown) + "..." : text;
}

std::string shown(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.15g", value);
  return text;
}

std::string between(const std::string& what, const std::string& low, const std::string& high) {
  return what + " between " + low + " and " + high;
}

}  // namespace

JsonFile JsonFile::load(const std::filesystem::path& path) {
  const MmapFile bytes(path);
  JsonFile file;
  file.name_ = path.string();
  file.root_ = parse_text(file.name_, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  return file;
}

JsonFile JsonFile::parse(const std::string& name, const std::string& text) {
  JsonFile file;
  file.name_ = name;
  file.root_ = parse_text(name, text);
  return file;
}

void JsonFile::fail(const std::string& key, const std::string& what) const {
  throw Error(name_ + ": " + key + " " + what);
}

const json* JsonFile::find(const std::string& key) const {
  const json* value = &root_;
  for (size_t begin = 0; begin <= key.size();) {
    const size_t dot = std::min(key.find('.', begin), key.size());
    if (!value->is_object()) {
      fail(key.substr(0, begin - 1), "is " + shown(*value) + "; it must be an object");
    }
    const auto child = value->find(key.substr(begin, dot - begin));
    if (child == value->end() || child->is_null()) return nullptr;
    value = &*child;
    begin = dot + 1;
  }
  return value;
}

bool JsonFile::has(const std::string& key) const {
  return find(key) != nullptr;
}

int64_t JsonFile::checked_integer(const std::string& key, const json& value, int64_t low,
                                  int64_t high) const {
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() || value.get<uint64_t>() <= uint64_t(INT64_MAX)) &&
                    value.get<int64_t>() >= low && value.get<int64_t>() <= high;
  if (!fits) {
    fail(key, "is " + shown(value) + "; it must be " +
                  between("an integer", std::to_string(low), std::to_string(high)));
  }
  return value.get<int64_t>();
}

std::optional<int64_t> JsonFile::integer(const std::string& key, int64_t low, int64_t high) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return checked_integer(key, *value, low, high);
}

std::optional<double> JsonFile::number(const std::string& key, double low, double high) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  const double x = value->is_number() ? value->get<double>() : NAN;
  if (!(x >= low && x <= high)) {
    fail(key,
         "is " + shown(*value) + "; it must be " + between("a number", shown(low), shown(high)));
  }
  return x;
}

std::optional<bool> JsonFile::boolean(const std::string& key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) fail(key, "is " + shown(*value) + "; it must be true or false");
  return value->get<bool>();
}

std::optional<std::string> JsonFile::string(const std::string& key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) fail(key, "is " + shown(*value) + "; it must be a string");
  return value->get<std::string>();
}

std::vector<int64_t> JsonFile::integers(const std::string& key, int64_t low, int64_t high) const {
  const json* value = find(key);
  if (value == nullptr) return {};
  if (!value->is_array()) return {checked_integer(key, *value, low, high)};
  std::vector<int64_t> all;
  for (const json& item : *value) all.push_back(checked_integer(key, item, low, high));
  return all;
}

int64_t JsonFile::required_integer(const std::string& key, int64_t low, int64_t high) const {
  const std::optional<int64_t> value = integer(key, low, high);
  if (!value) fail(key, "is missing");
  return *value;
}

double JsonFile::required_number(const std::string& key, double low, double high) const {
  const std::optional<double> value = number(key, low, high);
  if (!value) fail(key, "is missing");
  return *value;
}

}  // namespace nibble
