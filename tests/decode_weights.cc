// decode_weights FOLDER OUT: every weight of a checkpoint as decode_row gives it, for comparing
// with what other code makes of the same bytes. A line "name rows cols" a weight to stdout, their
// FP32 rows one after another to OUT.
#include <cstdio>
#include <fstream>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "model/glm_weights.h"

int main(int argc, char** argv) {
  using namespace nibble;
  if (argc != 3) return 2;
  try {
    const GlmConfig config = GlmConfig::load(argv[1]);
    GlmWeights weights = GlmWeights::load(Checkpoint::open(argv[1]), config);
    std::ofstream out(argv[2], std::ios::binary);
    weights.for_each([&](Weight& w) {
      std::printf("%s %lld %lld\n", w.name.c_str(), static_cast<long long>(w.total_rows()),
                  static_cast<long long>(w.cols));
      std::vector<float> row(static_cast<size_t>(w.cols));
      for (int64_t r = 0; r < w.total_rows(); ++r) {
        decode_row(w, r, row.data());
        out.write(reinterpret_cast<const char*>(row.data()),
                  std::streamsize(row.size() * sizeof(float)));
      }
    });
    if (!out.flush()) throw Error(std::string(argv[2]) + ": cannot be written");
  } catch (const Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
