#include "apps/calibration_file.h"

#include <gtest/gtest.h>

#include <fstream>

#include "text/tokenizer.h"

namespace nibble {
namespace {

const char* const kPocket = NIBBLE_SOURCE_DIR "/models/pocket";

TEST(CalibrationFile, MarksWhatTheModelWritesItself) {
  const auto path = std::filesystem::temp_directory_path() / "nibble_calibration_file_test.jsonl";
  std::ofstream(path) << R"({"messages": [{"role": "user", "content": "Hi"},)"
                      << R"({"role": "assistant", "content": "Hello"},)"
                      << R"({"role": "user", "content": "Bye"},)"
                      << R"({"role": "assistant", "content": "So long"}]})" << '\n';
  const auto samples =
      load_calibration(kPocket, {.file = path.string(), .samples = 1, .max_length = 1000});
  std::filesystem::remove(path);
  ASSERT_EQ(samples.size(), 1u);
  const auto tokenizer = Tokenizer::load(kPocket);
  std::vector<int32_t> followed, others;
  for (size_t i = 0; i < samples[0].tokens.size(); ++i) {
    (samples[0].before_reply[i] ? followed : others).push_back(samples[0].tokens[i]);
  }
  EXPECT_EQ(tokenizer->decode(followed, false),
            "<|assistant|></think>Hello<|assistant|></think>So long");
  EXPECT_EQ(tokenizer->decode(others, false), "[gMASK]<sop><|user|>Hi<|user|>Bye");
}

}  // namespace
}  // namespace nibble
