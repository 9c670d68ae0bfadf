#include "compress/calibration_tokens.h"

#include <algorithm>
#include <cstdio>

#include "base/check.h"

namespace nibble {

CalibrationTokens::CalibrationTokens(const std::vector<CalibrationSample>& samples, int slab_rows) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a over lengths and tokens
  const auto mix = [&](uint64_t value) { hash = (hash ^ value) * 0x100000001b3; };
  for (const CalibrationSample& sample : samples) {
    const int rows = int(sample.tokens.size());
    CHECK(rows > 0, "an empty sample");
    CHECK(sample.before_reply.empty() || int(sample.before_reply.size()) == rows);
    if (slabs_.empty() || slabs_.back().batch.rows() + rows > slab_rows) {
      slabs_.push_back({.first_row = num_tokens_});
    }
    Slab& slab = slabs_.back();
    Batch& batch = slab.batch;
    batch.segments.push_back({.first_row = batch.rows(),
                              .num_rows = rows,
                              .context = 0,
                              .first_page = int(batch.pages.size()),
                              .expanded = true});  // all keys are new
    for (int p = 0; p * kPageSize < rows; ++p) batch.pages.push_back(slab.num_pages++);
    for (int r = 0; r < int(sample.before_reply.size()); ++r) {
      if (sample.before_reply[size_t(r)]) slab.before_reply.push_back(batch.rows() + r);
    }
    batch.tokens.insert(batch.tokens.end(), sample.tokens.begin(), sample.tokens.end());
    num_tokens_ += rows;
    mix(uint64_t(rows));
    for (const int32_t token : sample.tokens) mix(uint64_t(token));
  }
  char text[32];
  std::snprintf(text, sizeof text, "%zu-%016llx", samples.size(),
                static_cast<unsigned long long>(hash));
  key_ = text;
}

int CalibrationTokens::max_rows() const {
  int most = 0;
  for (const Slab& slab : slabs_) most = std::max(most, slab.batch.rows());
  return most;
}

int CalibrationTokens::longest_sample() const {
  int most = 0;
  for (const Slab& slab : slabs_) {
    for (const Segment& sample : slab.batch.segments) most = std::max(most, sample.num_rows);
  }
  return most;
}

int CalibrationTokens::max_pages() const {
  int most = 0;
  for (const Slab& slab : slabs_) most = std::max(most, slab.num_pages);
  return most;
}

}  // namespace nibble
