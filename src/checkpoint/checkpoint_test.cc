#include "checkpoint/checkpoint.h"

#include <string>

#include "checkpoint/test_files.h"

namespace nibble {
namespace {

std::string file_with(const std::string& name) {
  return safetensors_bytes(R"({")" + name + R"(":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
                           4);
}

using CheckpointTest = FolderTest;

TEST_F(CheckpointTest, PrefersTheSingleFile) {
  write("model.safetensors", file_with("a"));
  write("other.safetensors", file_with("b"));
  const Checkpoint checkpoint = Checkpoint::open(folder_);
  EXPECT_EQ(checkpoint.folder(), folder_);
  EXPECT_EQ(checkpoint.tensors().size(), 1u);
  ASSERT_NE(checkpoint.find("a"), nullptr);
  EXPECT_EQ(checkpoint.find("b"), nullptr);
  EXPECT_EQ(checkpoint.find("a")->data[3], 3);
  EXPECT_EQ(checkpoint.size_bytes(), 4);
}

TEST_F(CheckpointTest, TakesAllFilesWithoutAnIndex) {
  write("x-1.safetensors", file_with("a"));
  write("x-2.safetensors", file_with("b"));
  write("notes.txt", "not a tensor");
  EXPECT_EQ(Checkpoint::open(folder_).tensors().size(), 2u);
}

TEST_F(CheckpointTest, TakesTheFilesOfTheIndexOnly) {
  write("x-1.safetensors", file_with("a"));
  write("x-2.safetensors", file_with("b"));
  write("unrelated.safetensors", "garbage");
  write("model.safetensors.index.json",
        R"({"weight_map":{"a":"x-1.safetensors","b":"x-2.safetensors"}})");
  EXPECT_EQ(Checkpoint::open(folder_).tensors().size(), 2u);
}

TEST_F(CheckpointTest, KeepsTheFilesMapped) {
  write("model.safetensors", file_with("a"));
  const uint8_t* data = nullptr;
  std::shared_ptr<const void> mapping;
  {
    const Checkpoint checkpoint = Checkpoint::open(folder_);
    data = checkpoint.find("a")->data;
    mapping = checkpoint.mapping();
  }
  EXPECT_EQ(data[2], 2);
}

TEST_F(CheckpointTest, RefusesFoldersThatHoldNoModel) {
  EXPECT_ERROR(Checkpoint::open(folder_ / "none"), "no such folder");
  EXPECT_ERROR(Checkpoint::open(write("file", "x")), "not a folder");
  EXPECT_ERROR(Checkpoint::open(folder_), "no *.safetensors file in this folder");
}

TEST_F(CheckpointTest, NamesTheFileThatIsBroken) {
  write("x-1.safetensors", file_with("a"));
  write("x-2.safetensors", file_with("b").substr(0, 30));
  EXPECT_ERROR(Checkpoint::open(folder_), "x-2.safetensors: cut short");
  write("x-2.safetensors", "");
  EXPECT_ERROR(Checkpoint::open(folder_), "x-2.safetensors: the file is empty");
}

TEST_F(CheckpointTest, RefusesATensorInTwoFiles) {
  write("x-1.safetensors", file_with("a"));
  write("x-2.safetensors", file_with("a"));
  EXPECT_ERROR(Checkpoint::open(folder_),
               "x-2.safetensors: tensor \"a\" is in x-1.safetensors too");
}

TEST_F(CheckpointTest, TheIndexChoosesAmongSeveralFiles) {
  write("x-1.safetensors",
        safetensors_bytes(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                          R"("b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
                          4));
  write("x-2.safetensors", file_with("a"));
  write("model.safetensors.index.json",
        R"({"weight_map":{"a":"x-2.safetensors","b":"x-1.safetensors"}})");
  const Checkpoint checkpoint = Checkpoint::open(folder_);
  EXPECT_EQ(checkpoint.find("a")->size_bytes, 4);
  EXPECT_EQ(checkpoint.find("b")->size_bytes, 2);
}

TEST_F(CheckpointTest, RefusesBrokenIndexes) {
  write("x-1.safetensors", file_with("a"));
  const auto open_with = [&](const std::string& index) {
    write("model.safetensors.index.json", index);
    return error_of([&] { Checkpoint::open(folder_); });
  };
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  EXPECT_TRUE(has(open_with("{"), "index.json: not JSON"));
  EXPECT_TRUE(has(open_with("{}"), "weight_map must be an object"));
  EXPECT_TRUE(has(open_with(R"({"weight_map":{}})"), "weight_map must be an object"));
  EXPECT_TRUE(
      has(open_with(R"({"weight_map":{"a":"x-2.safetensors"}})"), "x-2.safetensors: No such"));
  EXPECT_TRUE(has(open_with(R"({"weight_map":{"a":"x-1.safetensors","b":"x-1.safetensors"}})"),
                  "tensor \"b\" is not in x-1.safetensors"));
  for (const char* file : {R"("../x-1.safetensors")", R"("/x-1.safetensors")", R"("..")", R"("")",
                           R"("x-1.bin")", R"("x-1\u0000.safetensors")", "1", "null"}) {
    EXPECT_TRUE(has(open_with(R"({"weight_map":{"a":)" + std::string(file) + "}}"),
                    "it must be a *.safetensors file of the same folder"))
        << file;
  }
}

TEST(Checkpoint, ReadsThePocketModel) {
  const Checkpoint checkpoint = Checkpoint::open(NIBBLE_SOURCE_DIR "/models/pocket");
  EXPECT_EQ(checkpoint.tensors().size(), 391u);
  EXPECT_EQ(checkpoint.size_bytes(), 38'701'184);
  const StoredTensor* bias = checkpoint.find("model.layers.1.mlp.gate.e_score_correction_bias");
  ASSERT_NE(bias, nullptr);
  EXPECT_EQ(bias->dtype, DType::kF32);
  EXPECT_EQ(bias->shape, std::vector<int64_t>{16});
}

TEST(Checkpoint, ParsesBytesInMemory) {
  const std::string bytes = file_with("a");
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  EXPECT_EQ(Checkpoint::parse("memory", data, bytes.size()).find("a")->size_bytes, 4);
  EXPECT_ERROR(Checkpoint::parse("memory", data, 20), "memory: cut short");
}

}  // namespace
}  // namespace nibble
