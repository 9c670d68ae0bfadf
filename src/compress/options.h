// What can be asked of a quantization and of a pruning.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace nibble {

struct QuantizeOptions {
  std::filesystem::path source{};
  std::filesystem::path target{};
  std::string recipe = "best";          // rtn | awq-lite | best
  std::vector<std::string> exclude{};   // patterns of linears that stay as they are
  std::vector<std::string> fp8{};       // patterns of linears in FP8
  double budget = 0;                    // share of bytes that more linears in FP8 may add
  std::string format = "modelopt";      // modelopt | compressed-tensors
  std::string kv_cache_dtype = "auto";  // auto | fp8: a note for engines, nothing else
  std::string lm_head = "bf16";         // bf16 | fp8 | nvfp4
  std::string embed = "bf16";           // bf16 | nvfp4
  bool fold = false;                    // awq-lite: no pre_quant_scale in the result
  std::string calibration_key{};        // changes with the calibration tokens
  std::filesystem::path spill{};        // folder for activations; empty: memory
  bool resume = false;
  int64_t file_bytes = 5'000'000'000;
};

struct PruneOptions {
  std::filesystem::path source{};
  std::filesystem::path target{};
  int experts = 0;              // that every layer keeps
  std::string method = "reap";  // reap | frequency
  std::string calibration_key{};
  std::filesystem::path spill{};
  bool resume = false;
  int64_t file_bytes = 5'000'000'000;
};

}  // namespace nibble
