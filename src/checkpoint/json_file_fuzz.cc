// Any text as config.json: an Error or values inside their limits.
#include <cmath>

#include "base/check.h"
#include "base/error.h"
#include "checkpoint/json_file.h"

namespace {

template <typename Read>
void try_read(const Read& read) {
  try {
    read();
  } catch (const nibble::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  try_read([&] {
    const auto file = nibble::JsonFile::parse("fuzz", {reinterpret_cast<const char*>(bytes), size});
    for (const char* key : {"a", "b.c", "hidden_size"}) {
      try_read([&] {
        const auto value = file.integer(key, 1, 100);
        CHECK(!value || (*value >= 1 && *value <= 100));
      });
      try_read([&] {
        const auto value = file.number(key, -1, 1);
        CHECK(!value || std::fabs(*value) <= 1);
      });
      try_read([&] { file.boolean(key); });
      try_read([&] { file.string(key); });
      try_read([&] {
        for (const int64_t value : file.integers(key, 0, 9)) CHECK(value >= 0 && value <= 9);
      });
    }
  });
  return 0;
}
