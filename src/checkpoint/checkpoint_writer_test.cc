#include "checkpoint/checkpoint_writer.h"

#include <sys/resource.h>

#include <csignal>
#include <cstring>

#include "checkpoint/checkpoint.h"
#include "checkpoint/test_files.h"

namespace nibble {
namespace {

class CheckpointWriterTest : public FolderTest {
 protected:
  std::filesystem::path target() const { return folder_ / "made"; }
  std::vector<TensorPlan> plan() const {
    return {
        {"bytes", DType::kU8, {3}}, {"scalar", DType::kF32, {}}, {"matrix", DType::kBF16, {2, 2}}};
  }
  static void write_all(CheckpointWriter& writer) {
    const float scalar = 2.5f;
    writer.write("matrix", "abcdefgh", 8);
    writer.write("scalar", &scalar, 4);
    writer.write("bytes", "xyz", 3);
  }
  static void expect_written(const Checkpoint& checkpoint) {
    EXPECT_EQ(checkpoint.tensors().size(), 3u);
    EXPECT_EQ(std::memcmp(checkpoint.find("bytes")->data, "xyz", 3), 0);
    EXPECT_EQ(std::memcmp(checkpoint.find("matrix")->data, "abcdefgh", 8), 0);
    EXPECT_EQ(checkpoint.find("matrix")->shape, (std::vector<int64_t>{2, 2}));
    EXPECT_TRUE(checkpoint.find("scalar")->shape.empty());
  }
};

TEST_F(CheckpointWriterTest, AppearsWhenComplete) {
  {
    CheckpointWriter writer(target(), plan(), {});
    write_all(writer);
    EXPECT_FALSE(std::filesystem::exists(target()));
    writer.write_file("config.json", "{}");
    writer.finish();
  }
  expect_written(Checkpoint::open(target()));
  EXPECT_FALSE(std::filesystem::exists(partial_folder_of(target())));
  EXPECT_TRUE(std::filesystem::exists(target() / "config.json"));
  EXPECT_ERROR(CheckpointWriter(target() / "", plan(), {}), "is there already");
  std::filesystem::create_symlink(folder_ / "nowhere", folder_ / "link");
  EXPECT_ERROR(CheckpointWriter(folder_ / "link", plan(), {}), "is there already");
  EXPECT_ERROR(CheckpointWriter("", plan(), {}), "is empty");
}

TEST_F(CheckpointWriterTest, FilesTakeWhatFits) {
  CheckpointWriter writer(target(), plan(), {.file_bytes = 8});
  write_all(writer);
  writer.finish();
  EXPECT_TRUE(std::filesystem::exists(target() / "model-00001-of-00002.safetensors"));
  expect_written(Checkpoint::open(target()));
}

TEST_F(CheckpointWriterTest, NothingIsLeftOfAFailure) {
  { CheckpointWriter writer(target(), plan(), {}); }
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

TEST_F(CheckpointWriterTest, WhatWasKeptCanBeResumed) {
  {
    CheckpointWriter writer(target(), plan(), {});
    writer.write("bytes", "xyz", 3);
    writer.sync();
    writer.keep();
  }
  EXPECT_ERROR(CheckpointWriter(target(), plan(), {}), "--resume");
  auto other = plan();
  other[0].shape = {4};
  EXPECT_ERROR(CheckpointWriter(target(), other, {.resume = true}), "other options");
  CheckpointWriter writer(target(), plan(), {.resume = true});
  const float scalar = 2.5f;
  writer.write("matrix", "abcdefgh", 8);
  writer.write("scalar", &scalar, 4);
  writer.finish();
  expect_written(Checkpoint::open(target()));
}

TEST_F(CheckpointWriterTest, WhatHadNotBegunIsMadeAfresh) {
  const auto partial = partial_folder_of(target());
  std::filesystem::create_directories(partial);
  EXPECT_ERROR(CheckpointWriter(target(), plan(), {.resume = true}), "nothing to go on with");
  std::ofstream(partial / "model.safetensors") << std::string(8, '\0') << "{\"half\": ";
  EXPECT_ERROR(CheckpointWriter(target(), plan(), {.resume = true}), "other options");
  CheckpointWriter writer(target(), plan(), {.resume = true, .begun = false});
  write_all(writer);
  writer.finish();
  expect_written(Checkpoint::open(target()));
}

TEST_F(CheckpointWriterTest, ResumingNothingIsAnError) {
  EXPECT_ERROR(CheckpointWriter(target(), plan(), {.resume = true}), "nothing to go on with");
}

TEST_F(CheckpointWriterTest, AFullDiskIsNoticedAtOnce) {
  EXPECT_ERROR(CheckpointWriter(target(), {{"huge", DType::kU8, {int64_t(1) << 60}}}, {}),
               "are needed");
  // A limit on the size of files fails like a disk whose last room went to somebody else.
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{.rlim_cur = 4096, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = error_of([&] {
    CheckpointWriter(target(), {{"large", DType::kU8, {1 << 20}}}, {});
  });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_NE(message.find("no room"), std::string::npos) << message;
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

}  // namespace
}  // namespace nibble
