#include "compress/disk_layout.h"

#include "base/numbers.h"
#include "checkpoint/test_files.h"

namespace nibble {
namespace {

const PlannedGroup kPlanned = {.group = {.rows = 1, .cols = 16, .linears = {{"some.linear", 1}}}};

TEST(DiskLayoutTest, ReciprocalScalesReadAlike) {
  const Recipe recipe = {.format = DiskFormat::kCompressedTensors};
  for (float scale = 1e-30f; scale < 1e30f; scale *= 1.0173f) {
    const float stored = stored_tensor_scale(recipe, kPlanned, scale);
    EXPECT_NEAR(stored / scale, 1, 2e-4) << scale;
    const float reciprocal = 1 / stored;
    ASSERT_EQ(1 / reciprocal, stored);
    for (int code = 0; code < 127; ++code) {
      const float block = e4m3_to_float(uint8_t(code));
      ASSERT_EQ(block / reciprocal, block * stored) << scale << ", code " << code;
    }
    EXPECT_EQ(stored_tensor_scale(recipe, kPlanned, stored), stored);
  }
}

TEST(DiskLayoutTest, ScalesWithoutReciprocalAreRefused) {
  const Recipe recipe = {.format = DiskFormat::kCompressedTensors};
  EXPECT_ERROR(stored_tensor_scale(recipe, kPlanned, 1e-42f), "some.linear");
  EXPECT_EQ(stored_tensor_scale({}, kPlanned, 1e-42f), 1e-42f);
}

}  // namespace
}  // namespace nibble
