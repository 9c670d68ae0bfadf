// Cache records <-> floats, fast: the same bytes and values as encode_record and decode_record.
#pragma once

#include <cstdint>

#include "backend/batch.h"
#include "backend/kv_cache.h"

namespace nibble {

void encode_record_fast(KvFormat format, const float* values, int width, void* record);

// Where the records of one sequence lie.
struct RecordPages {
  const KvLayer& cache;
  const int32_t* pages;  // the sequence's page table

  uint8_t* at(int64_t position) const {
    return static_cast<uint8_t*>(cache.data) +
           pages[position / cache.page_size] * kv_page_bytes(cache) +
           position % cache.page_size * kv_record_bytes(cache.format, cache.width);
  }
};

}  // namespace nibble
