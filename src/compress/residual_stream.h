// ResidualStream: the residual of every calibration token between two layers, in memory or in a
// file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace nibble {

class ResidualStream {
 public:
  // `spill`: a folder for the file, which has no name and goes with the object; empty: memory.
  // Throws Error that names the folder.
  ResidualStream(int64_t rows, int64_t cols, const std::filesystem::path& spill);
  ~ResidualStream();
  ResidualStream(const ResidualStream&) = delete;
  ResidualStream& operator=(const ResidualStream&) = delete;

  void read(int64_t first_row, int64_t count, float* out) const;
  void write(int64_t first_row, int64_t count, const float* rows);

 private:
  const int64_t cols_;
  std::vector<float> values_;
  std::filesystem::path folder_;
  int descriptor_ = -1;
};

}  // namespace nibble
