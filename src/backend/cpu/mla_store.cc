// record of position p = [rms_norm(kv[:latent]) * gain | rotate(kv[latent:], p)], encoded. Rows are
// shared among the threads.
#include "backend/cpu/mla_store.h"

#include "backend/cpu/records.h"
#include "backend/cpu/rows.h"

namespace nibble {

void MlaStore::run(Tensor kv, const Weight& gain, const MlaShape& shape, const Batch& batch,
                   const KvLayer& cache, const RopeTable& rope) {
  CHECK(kv.cols == shape.record_dim() && cache.width == shape.record_dim(), "%ld columns",
        long(kv.cols));
  workers_.run(kv.rows > 1 ? kv.rows * kv.cols * 4 : 0, [&](int thread) {
    const Share rows = workers_.share(thread, kv.rows);
    float* record = records_[size_t(thread)].fit(size_t(shape.record_dim()));
    for (const Segment& segment : batch.segments) {
      const RecordPages pages{cache, batch.pages.data() + segment.first_page};
      const int64_t first = std::max<int64_t>(rows.first, segment.first_row);
      const int64_t last = std::min<int64_t>(rows.last, segment.first_row + segment.num_rows);
      for (int64_t t = first; t < last; ++t) {
        const float* row = kv.row<float>(t);
        const int64_t position = segment.context + t - segment.first_row;
        rms_norm_row(row, packed(gain).values.data(), shape.latent_dim, shape.norm_eps, record);
        rope.rotate(row + shape.latent_dim, position, record + shape.latent_dim);
        encode_record_fast(cache, record, pages.at(position));
      }
    }
  });
}

}  // namespace nibble
