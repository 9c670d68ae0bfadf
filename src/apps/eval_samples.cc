#include "apps/eval_samples.h"

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/utf8.h"

namespace nibble {
namespace {

constexpr int kChunkTokens = 512;

// A list of whole numbers in [low, high].
std::vector<int> numbers(const nlohmann::json& list, int low, int high, const std::string& what) {
  std::vector<int> values;
  for (const auto& item : list) {
    if (!item.is_number_integer() || item < low || item > high) {
      throw Error(what + " must hold whole numbers from " + std::to_string(low) + " to " +
                  std::to_string(high));
    }
    values.push_back(item.get<int>());
  }
  return values;
}

TextSample parse_chat(const std::string& line, const std::string& place, int vocab) {
  const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("ids") || !json["ids"].is_array() ||
      !json.contains("spans") || !json["spans"].is_array()) {
    throw Error(place + ": must be an object with \"ids\" and \"spans\"");
  }
  TextSample sample{.place = place};
  for (const int id : numbers(json["ids"], 0, vocab - 1, place + ": ids")) sample.ids.push_back(id);
  const int length = int(sample.ids.size());
  std::vector<bool> counts(size_t(length), false);
  for (const auto& span : json["spans"]) {
    const std::string what = place + ": a span [a, b), 0 < a < b,";
    const std::vector<int> ends =
        span.is_array() ? numbers(span, 1, length, what) : std::vector<int>();
    if (ends.size() != 2 || ends[0] >= ends[1]) {
      throw Error(what + " must hold two whole numbers up to " + std::to_string(length));
    }
    for (int i = ends[0]; i < ends[1]; ++i) counts[size_t(i)] = true;
  }
  for (int i = 0; i < length; ++i) {
    if (counts[size_t(i)]) sample.counted.push_back(i);
  }
  return sample;
}

int32_t prefix_token(const Tokenizer& tokenizer, const std::string& content) {
  const auto id = tokenizer.added_token(content);
  if (!id) throw Error("--perplexity: the tokenizer has no token " + content);
  return *id;
}

}  // namespace

std::vector<TextSample> load_chat_samples(const std::string& path, int vocab) {
  std::ifstream file(path);
  if (!file) throw Error("--chat " + path + ": cannot be read");
  std::vector<TextSample> samples;
  bool any = false;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.empty()) continue;
    samples.push_back(parse_chat(line, path + ":" + std::to_string(number), vocab));
    any |= !samples.back().counted.empty();
  }
  if (!any) throw Error("--chat " + path + ": counts no token");
  return samples;
}

std::vector<TextSample> load_prose_samples(const std::string& path, const Tokenizer& tokenizer) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error("--perplexity " + path + ": cannot be read");
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!is_valid_utf8(text)) throw Error("--perplexity " + path + ": is not UTF-8 text");
  const std::vector<int32_t> ids = tokenizer.encode(text);
  const std::vector<int32_t> prefix = {prefix_token(tokenizer, "[gMASK]"),
                                       prefix_token(tokenizer, "<sop>")};
  std::vector<TextSample> samples;
  for (size_t first = 0; first + kChunkTokens <= ids.size(); first += kChunkTokens) {
    TextSample sample{.place = path + ", chunk " + std::to_string(samples.size()), .ids = prefix};
    sample.ids.insert(sample.ids.end(), ids.begin() + int64_t(first),
                      ids.begin() + int64_t(first) + kChunkTokens);
    for (int i = 0; i < kChunkTokens; ++i) sample.counted.push_back(int(prefix.size()) + i);
    samples.push_back(std::move(sample));
  }
  if (samples.empty()) {
    throw Error("--perplexity " + path + ": has " + std::to_string(ids.size()) +
                " tokens; at least " + std::to_string(kChunkTokens) + " are needed");
  }
  return samples;
}

}  // namespace nibble
