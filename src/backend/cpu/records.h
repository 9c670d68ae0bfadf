// Cache records <-> floats, fast: the same bytes and values as encode_record and decode_record.
#pragma once

#include <cstdint>

#include "backend/batch.h"
#include "backend/kv_cache.h"

namespace nibble {

void encode_record_fast(const KvLayer& layer, const float* values, KvRecord record);
// With zeros up to a multiple of 16 values.
void decode_record_fast(const KvLayer& layer, KvRecord record, float* values);

// Where the records of one sequence lie.
struct RecordPages {
  const KvLayer& cache;
  const int32_t* pages;  // the sequence's page table

  KvRecord at(int64_t position) const {
    return kv_record(cache, pages[position / cache.page_size], position % cache.page_size);
  }
};

}  // namespace nibble
