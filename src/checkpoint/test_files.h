// Safetensors bytes and folders of files for this room's tests.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/numbers.h"

namespace nibble {

inline std::string safetensors_bytes(const std::string& header, size_t data_bytes) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += char(header.size() >> (8 * i));
  bytes += header;
  for (size_t i = 0; i < data_bytes; ++i) bytes += char(i);
  return bytes;
}

// The message of the Error that `action` throws, or "" (a test failure) when it throws none.
template <typename Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  ADD_FAILURE() << "no Error";
  return "";
}

#define EXPECT_ERROR(action, part)                               \
  do {                                                           \
    const std::string message = error_of([&] { action; });       \
    EXPECT_NE(message.find(part), std::string::npos) << message; \
  } while (false)

// A safetensors file in memory, made tensor by tensor.
class FileBuilder {
 public:
  void add(const std::string& name, const std::string& dtype, std::vector<int64_t> shape,
           const std::vector<uint8_t>& bytes) {
    const size_t begin = data_.size();
    data_.insert(data_.end(), bytes.begin(), bytes.end());
    header_[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {begin, data_.size()}}};
  }
  void add_bf16(const std::string& name, std::vector<int64_t> shape) {
    int64_t count = 1;
    for (const int64_t d : shape) count *= d;
    std::vector<uint8_t> bytes(size_t(count) * 2);
    for (size_t i = 0; i < bytes.size(); i += 2) {
      const uint16_t bits = float_to_bf16(float(next_++ % 997) / 997 - 0.5f);
      std::memcpy(bytes.data() + i, &bits, 2);
    }
    add(name, "BF16", shape, bytes);
  }
  template <typename T>
  void add_values(const std::string& name, const std::string& dtype, std::vector<int64_t> shape,
                  const std::vector<T>& values) {
    std::vector<uint8_t> bytes(values.size() * sizeof(T));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    add(name, dtype, shape, bytes);
  }
  const std::vector<uint8_t>& finish() {
    const std::string json = header_.dump();
    const uint64_t size = json.size();
    file_.resize(8);
    std::memcpy(file_.data(), &size, 8);
    file_.insert(file_.end(), json.begin(), json.end());
    file_.insert(file_.end(), data_.begin(), data_.end());
    return file_;
  }

 private:
  nlohmann::json header_;
  std::vector<uint8_t> data_, file_;
  int next_ = 0;
};

// A folder of its own, removed at the end of the test.
class FolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::temp_directory_path() /
              (std::string("nibble-") + test->name() + "-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path write(const std::string& name, const std::string& bytes) const {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
    return folder_ / name;
  }

  std::filesystem::path folder_;
};

}  // namespace nibble
