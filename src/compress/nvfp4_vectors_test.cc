// The vectors of models/pocket/eval, made by ModelOpt's NVFP4QTensor.quantize.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "base/mmap_file.h"
#include "base/numbers.h"
#include "checkpoint/checkpoint.h"
#include "compress/round_to_nearest.h"
#include "quant/nvfp4.h"

namespace nibble {
namespace {

const char* const kVectors = NIBBLE_SOURCE_DIR "/models/pocket/eval/nvfp4_vectors.safetensors";

class Nvfp4Vectors : public ::testing::TestWithParam<std::string> {
 protected:
  const StoredTensor& tensor(const std::string& part) {
    const StoredTensor* found = tensors_.find(GetParam() + "." + part);
    EXPECT_NE(found, nullptr) << part;
    return *found;
  }

  MmapFile file_{kVectors};
  Checkpoint tensors_ = Checkpoint::parse(kVectors, file_.data(), file_.size());
};

std::vector<float> bf16_values(const StoredTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, tensor.data + 2 * i, 2);
    values[i] = bf16_to_float(bits);
  }
  return values;
}

TEST_P(Nvfp4Vectors, AreEncodedBitForBit) {
  const StoredTensor& input = tensor("input");
  const int64_t rows = input.shape[0], cols = input.shape[1];
  const std::vector<float> values = bf16_values(input);
  float scale;
  std::memcpy(&scale, tensor("weight_scale_2").data, sizeof scale);
  if (GetParam() != "saturated" && GetParam() != "shared") {  // whose scale comes from elsewhere
    const float amax = checked_amax(GetParam(), values.data(), rows, cols);
    EXPECT_EQ(nvfp4::global_scale_of(amax), scale);
  }
  const uint8_t *codes = tensor("weight").data, *scales = tensor("weight_scale").data;
  const float* decoded = reinterpret_cast<const float*>(tensor("dequant").data);
  std::vector<uint8_t> row_codes(size_t(cols / 2)), row_scales(size_t(cols / nvfp4::kBlock));
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    nvfp4::encode_row(values.data() + r * cols, scale, cols, row_codes.data(), row_scales.data());
    ASSERT_EQ(std::memcmp(row_codes.data(), codes + r * cols / 2, row_codes.size()), 0) << r;
    ASSERT_EQ(std::memcmp(row_scales.data(), scales + r * cols / nvfp4::kBlock, row_scales.size()),
              0)
        << r;
    nvfp4::decode_row(row_codes.data(), row_scales.data(), scale, cols, row.data());
    for (int64_t k = 0; k < cols; ++k) {
      float want;
      std::memcpy(&want, decoded + r * cols + k, sizeof want);
      ASSERT_EQ(row[size_t(k)], want) << r << " " << k;
    }
  }
}

// Nothing here rounds activations; but input_scale must mean to others what weight_scale_2 means.
class Nvfp4ActivationVectors : public Nvfp4Vectors {};

TEST_P(Nvfp4ActivationVectors, RoundAsWeightsWhoseTensorScaleIsTheInputScale) {
  const StoredTensor& input = tensor("input");
  const int64_t rows = input.shape[0], cols = input.shape[1];
  const std::vector<float> values = bf16_values(input);
  float scale;
  std::memcpy(&scale, tensor("input_scale").data, sizeof scale);
  std::vector<uint8_t> codes(size_t(cols / 2)), scales(size_t(cols / nvfp4::kBlock));
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    nvfp4::encode_row(values.data() + r * cols, scale, cols, codes.data(), scales.data());
    nvfp4::decode_row(codes.data(), scales.data(), scale, cols, row.data());
    for (int64_t k = 0; k < cols; ++k) {
      float want;
      std::memcpy(&want, tensor("dequant").data + (r * cols + k) * 4, sizeof want);
      ASSERT_EQ(row[size_t(k)], want) << r << " " << k;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(ModelOpt, Nvfp4ActivationVectors,
                         ::testing::Values("act_normal", "act_outlier", "act_saturated"),
                         [](const auto& info) { return info.param; });

INSTANTIATE_TEST_SUITE_P(ModelOpt, Nvfp4Vectors,
                         ::testing::Values("normal", "heavy", "expert_gate", "negative", "zeros",
                                           "tiny_blocks", "denormal", "huge", "ties_fp4",
                                           "ties_scale", "saturated", "shared"),
                         [](const auto& info) { return info.param; });

TEST(Nvfp4, ZerosHaveScalesThatAnyReaderCanDivideBy) {
  ThreadPool pool(1);
  const std::vector<float> zeros(64, 0.0f);
  const Encoded encoded = round_to_nearest(zeros.data(), 2, 32, Precision::kNvfp4, pool);
  EXPECT_EQ(encoded.tensor_scale, 1.0f);
  EXPECT_EQ(encoded.scales, std::vector<uint8_t>(4, 0x38));
  EXPECT_EQ(encoded.codes, std::vector<uint8_t>(32, 0));
}

}  // namespace
}  // namespace nibble
