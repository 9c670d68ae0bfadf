#include "compress/source_folder.h"

#include <atomic>
#include <cstring>
#include <fstream>
#include <sstream>

#include "base/error.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kCopiedFiles[] = {"generation_config.json",
                                        "tokenizer.json",
                                        "tokenizer_config.json",
                                        "chat_template.jinja",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "LICENSE",
                                        "LICENSE.txt",
                                        "NOTICE",
                                        "NOTICE.md"};

// Whether none of `count` floats has all bits of its exponent set.
template <typename Bits>
bool is_finite(const uint8_t* data, int64_t count, Bits exponent) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, data + i * int64_t(sizeof bits), sizeof bits);
    finite &= (bits & exponent) != exponent;
  }
  return finite;
}

bool is_finite(const StoredTensor& tensor, ThreadPool& pool) {
  constexpr int64_t kPiece = 1 << 18;  // elements
  const int64_t count = tensor.num_elements(), bytes = int64_t(dtype_bytes(tensor.dtype));
  std::atomic<bool> finite = true;
  pool.parallel_for((count + kPiece - 1) / kPiece, [&](int64_t i) {
    const uint8_t* data = tensor.data + i * kPiece * bytes;
    const int64_t piece = std::min(kPiece, count - i * kPiece);
    const bool ok = tensor.dtype == DType::kBF16 ? is_finite<uint16_t>(data, piece, 0x7f80)
                                                 : is_finite<uint32_t>(data, piece, 0x7f800000);
    if (!ok) finite = false;
  });
  return finite;
}

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  if (!file) throw Error(path.string() + ": cannot be read");
  return bytes.str();
}

}  // namespace

void refuse_quantized(const fs::path& folder, const GlmConfig& config,
                      const Checkpoint& checkpoint) {
  std::string what = config.quantization.empty() ? "" : "its config.json has quantization_config";
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    const bool plain = tensor.dtype == DType::kBF16 || tensor.dtype == DType::kF32;
    if (what.empty() && !plain) what = name + " is " + dtype_name(tensor.dtype);
  }
  if (what.empty()) return;
  throw Error(folder.string() + ": is quantized already (" + what +
              "); start from the BF16 checkpoint");
}

void check_finite(const Checkpoint& checkpoint, const std::set<std::string>& except,
                  ThreadPool& pool) {
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    const bool holds_floats = tensor.dtype == DType::kBF16 || tensor.dtype == DType::kF32;
    if (!holds_floats || except.contains(name) || is_finite(tensor, pool)) continue;
    throw Error(name + ": has a NaN or an infinity; weights must be finite");
  }
}

nlohmann::ordered_json read_config(const fs::path& folder) {
  return nlohmann::ordered_json::parse(read_file(folder / "config.json"));
}

void copy_files(const fs::path& folder, CheckpointWriter& writer) {
  for (const char* name : kCopiedFiles) {
    if (fs::is_regular_file(folder / name)) writer.write_file(name, read_file(folder / name));
  }
}

}  // namespace nibble
