#include "checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/error.h"
#include "base/log.h"

namespace nibble {
namespace {

constexpr size_t kPrefixBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxDimensions = 8;

struct NamedDType {
  const char* name;
  DType dtype;
};
constexpr NamedDType kDTypes[] = {
    {"F32", DType::kF32}, {"BF16", DType::kBF16}, {"F16", DType::kF16}, {"F8_E4M3", DType::kF8E4M3},
    {"U8", DType::kU8},   {"I8", DType::kI8},     {"I32", DType::kI32}, {"I64", DType::kI64},
};

std::string in_quotes(std::string_view name) {
  constexpr size_t kShown = 120;
  return '"' + escape_control(name.substr(0, kShown)) + (name.size() > kShown ? "...\"" : "\"");
}

struct Entry {
  StoredTensor tensor{};
  std::vector<uint64_t> offsets{};
  bool has_dtype = false;
  bool has_shape = false;
  bool has_offsets = false;
};

// Fills entries straight from the JSON events: whatever is not of the one allowed structure stops
// the parse, so that a hostile header costs no more memory than its own size.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::map<std::string, Entry> entries;
  std::string error;

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_float(double, const std::string& text) override { return unexpected(text); }
  bool binary(binary_t&) override { return unexpected("binary data"); }

  bool number_integer(int64_t value) override { return unexpected(std::to_string(value)); }

  bool number_unsigned(uint64_t value) override {
    if (place_ == Place::kShape) {
      if (value > uint64_t(std::numeric_limits<int64_t>::max())) {
        return unexpected(std::to_string(value));
      }
      if (entry_->tensor.shape.size() == kMaxDimensions) return fail("has over 8 dimensions");
      entry_->tensor.shape.push_back(int64_t(value));
      return true;
    }
    if (place_ == Place::kOffsets) {
      if (entry_->offsets.size() == 2) return fail("has more than two data_offsets");
      entry_->offsets.push_back(value);
      return true;
    }
    return unexpected(std::to_string(value));
  }

  bool string(std::string& text) override {
    if (place_ == Place::kMetadata) return true;
    if (place_ != Place::kTensor || field_ != "dtype") return unexpected(in_quotes(text));
    for (const NamedDType& known : kDTypes) {
      if (text == known.name) {
        entry_->tensor.dtype = known.dtype;
        return true;
      }
    }
    return fail("has the dtype " + in_quotes(text) +
                "; those read are F32 BF16 F16 F8_E4M3 U8 I8 I32 I64");
  }

  bool start_object(size_t) override {
    if (place_ == Place::kStart) {
      place_ = Place::kTop;
    } else if (place_ == Place::kTop) {
      place_ = entry_ != nullptr ? Place::kTensor : Place::kMetadata;
    } else {
      return unexpected("an object");
    }
    field_.clear();
    return true;
  }

  bool key(std::string& text) override {
    if (place_ == Place::kTop) return top_key(text);
    field_ = text;
    if (place_ == Place::kMetadata) return true;
    bool* const seen = text == "dtype"          ? &entry_->has_dtype
                       : text == "shape"        ? &entry_->has_shape
                       : text == "data_offsets" ? &entry_->has_offsets
                                                : nullptr;
    if (seen == nullptr) {
      return fail("has the field " + in_quotes(text) + "; known are dtype, shape, data_offsets");
    }
    if (*seen) return fail("has " + text + " twice");
    *seen = true;
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kTensor) {
      if (!entry_->has_dtype) return fail("has no dtype");
      if (!entry_->has_shape) return fail("has no shape");
      if (!entry_->has_offsets) return fail("has no data_offsets");
    }
    place_ = place_ == Place::kTop ? Place::kEnd : Place::kTop;
    field_.clear();
    return true;
  }

  bool start_array(size_t) override {
    if (place_ != Place::kTensor || field_ == "dtype") return unexpected("an array");
    place_ = field_ == "shape" ? Place::kShape : Place::kOffsets;
    return true;
  }

  bool end_array() override {
    if (place_ == Place::kOffsets && entry_->offsets.size() != 2) {
      return fail("must have two data_offsets");
    }
    place_ = Place::kTensor;
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& e) override {
    const std::string_view text = e.what();
    error = "the header is not JSON: " + escape_control(text.substr(text.find("] ") + 2, 160));
    return false;
  }

 private:
  enum class Place { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kEnd };

  bool top_key(const std::string& text) {
    name_ = text;
    entry_ = nullptr;
    if (text == "__metadata__") {
      if (has_metadata_) return fail("appears twice");
      has_metadata_ = true;
      return true;
    }
    const auto [at, added] = entries.try_emplace(text);
    entry_ = &at->second;
    return added || fail("appears twice");
  }

  bool fail(const std::string& what) {
    error = (entry_ != nullptr ? "tensor " : "") + in_quotes(name_) + " " + what;
    return false;
  }

  bool unexpected(const std::string& value) {
    switch (place_) {
      case Place::kMetadata:
        return fail("must map strings to strings; " + in_quotes(field_) + " is " + value);
      case Place::kTop:
        return fail("must be an object, not " + value);
      case Place::kShape:
        return fail("has " + value + " in its shape; dimensions are integers from 0");
      case Place::kOffsets:
        return fail("has " + value + " in its data_offsets; they are integers from 0");
      case Place::kTensor:
        return fail("has " + value + " as its " + field_ + "; it must be " +
                    (field_ == "dtype" ? "a string" : "a list of integers"));
      case Place::kStart:
      case Place::kEnd:
        break;
    }
    error = "the header must be a JSON object, not " + value;
    return false;
  }

  Place place_ = Place::kStart;
  Entry* entry_ = nullptr;  // the tensor being read; null in __metadata__
  std::string name_;
  std::string field_;
  bool has_metadata_ = false;
};

// Returns what is wrong, or nothing.
std::string check_entry(Entry& entry, size_t data_size) {
  const uint64_t begin = entry.offsets[0], end = entry.offsets[1];
  const std::string range =
      "data_offsets [" + std::to_string(begin) + ", " + std::to_string(end) + "]";
  if (begin > end) return "has reversed " + range;
  if (end > data_size) {
    return "has " + range + " outside the file's " + std::to_string(data_size) +
           " bytes of data (is the file cut short?)";
  }
  int64_t bytes = int64_t(dtype_bytes(entry.tensor.dtype));
  for (const int64_t dimension : entry.tensor.shape) {
    if (__builtin_mul_overflow(bytes, dimension, &bytes)) return "has a shape too large to exist";
  }
  if (uint64_t(bytes) != end - begin) {
    return "needs " + std::to_string(bytes) + " bytes by dtype and shape, but has " + range;
  }
  entry.tensor.size_bytes = bytes;
  return "";
}

}  // namespace

int64_t StoredTensor::num_elements() const {
  int64_t n = 1;
  for (const int64_t dimension : shape) n *= dimension;
  return n;
}

const char* dtype_name(DType dtype) {
  for (const NamedDType& known : kDTypes) {
    if (known.dtype == dtype) return known.name;
  }
  return "?";
}

std::map<std::string, StoredTensor> parse_safetensors(const std::string& file, const uint8_t* bytes,
                                                      size_t size) {
  const auto fail = [&](const std::string& what) { throw Error(file + ": " + what); };
  if (size < kPrefixBytes) fail("too short for a safetensors file");
  uint64_t header_size = 0;
  for (size_t i = 0; i < kPrefixBytes; ++i) header_size |= uint64_t(bytes[i]) << (8 * i);
  if (header_size > kMaxHeaderBytes) {
    fail("the header's size is " + std::to_string(header_size) +
         " bytes; at most 100 MB are allowed (is this a safetensors file?)");
  }
  if (header_size > size - kPrefixBytes) {
    fail("cut short: the header's size is " + std::to_string(header_size) + " bytes, the file's " +
         std::to_string(size));
  }
  const char* const header = reinterpret_cast<const char*>(bytes) + kPrefixBytes;
  HeaderReader reader;
  if (!nlohmann::json::sax_parse(header, header + header_size, &reader)) fail(reader.error);

  const uint8_t* const data = bytes + kPrefixBytes + header_size;
  const size_t data_size = size - kPrefixBytes - size_t(header_size);
  std::vector<std::pair<const std::string, Entry>*> order;
  for (auto& named : reader.entries) {
    const std::string wrong = check_entry(named.second, data_size);
    if (!wrong.empty()) fail("tensor " + in_quotes(named.first) + " " + wrong);
    order.push_back(&named);
  }
  std::sort(order.begin(), order.end(),
            [](auto* a, auto* b) { return a->second.offsets < b->second.offsets; });
  std::map<std::string, StoredTensor> tensors;
  uint64_t covered = 0;
  for (auto* named : order) {
    auto& [name, entry] = *named;
    if (entry.offsets[0] < covered)
      fail("tensor " + in_quotes(name) + " overlaps the one before it");
    if (entry.offsets[0] > covered) {
      fail("no tensor has the bytes between " + std::to_string(covered) + " and tensor " +
           in_quotes(name));
    }
    covered = entry.offsets[1];
    entry.tensor.data = data + entry.offsets[0];
    tensors.emplace(name, std::move(entry.tensor));
  }
  if (covered != data_size) {
    fail(std::to_string(data_size - covered) + " bytes after the last tensor belong to none");
  }
  return tensors;
}

}  // namespace nibble
