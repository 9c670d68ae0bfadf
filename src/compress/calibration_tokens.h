// CalibrationTokens: the samples that calibrate, cut into slabs that run through a layer at once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/batch.h"

namespace nibble {

struct CalibrationSample {
  std::vector<int32_t> tokens{};
  // Whether the model itself must choose what follows the token, as in its own turns; empty: never.
  std::vector<bool> before_reply{};
};

struct Slab {
  Batch batch{};          // whole samples, each with pages of its own
  int64_t first_row = 0;  // of the residual stream
  int num_pages = 0;
  std::vector<int> before_reply{};  // rows of the batch, ascending
};

class CalibrationTokens {
 public:
  static constexpr int kPageSize = 16;
  static constexpr int kSlabRows = 4096;  // a longer sample is a slab by itself

  // No sample may be empty. `slab_rows`: smaller ones are for tests.
  explicit CalibrationTokens(const std::vector<CalibrationSample>& samples,
                             int slab_rows = kSlabRows);

  const std::vector<Slab>& slabs() const { return slabs_; }
  int64_t num_tokens() const { return num_tokens_; }
  int max_rows() const;   // of a slab
  int max_pages() const;  // of a slab
  int longest_sample() const;
  // Changes with any token: the same key, the same calibration.
  const std::string& key() const { return key_; }

 private:
  std::vector<Slab> slabs_;
  int64_t num_tokens_ = 0;
  std::string key_;
};

}  // namespace nibble
