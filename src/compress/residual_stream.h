// ResidualStream: the residual of every calibration token between two layers, in memory or in a
// file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "compress/kept_array.h"

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
  // Rows may be made where place() says.
  void write(int64_t first_row, int64_t count, const float* rows);

  // The rows in memory: the stream's own, or read into `memory`. Valid until either changes.
  const float* rows(int64_t first_row, int64_t count, KeptArray<float>& memory) const;
  // Where to make rows that are then written: the stream's own memory, or `memory`.
  float* place(int64_t first_row, int64_t count, KeptArray<float>& memory);

 private:
  const int64_t cols_;
  std::vector<float> values_;
  std::filesystem::path folder_;
  int descriptor_ = -1;
};

}  // namespace nibble
