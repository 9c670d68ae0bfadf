// CheckpointWriter: a folder of safetensors files that appears under its name only when complete.
//
// Everything is written to the folder `NAME.partial` beside it, which finish() renames. Shapes are
// planned first, so tensors can be written in any order and each goes straight to its place.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/tensor.h"

namespace nibble {

struct TensorPlan {
  std::string name{};
  DType dtype = DType::kF32;
  std::vector<int64_t> shape{};  // empty for a scalar

  int64_t size_bytes() const;
};

class CheckpointWriter {
 public:
  struct Options {
    int64_t file_bytes = 5'000'000'000;  // a file takes tensors up to this size
    // Goes on with the partial folder of a run that was stopped; its files must be of this plan.
    bool resume = false;
    // What was stopped may not have come so far as to make all of its files.
    bool begun = true;
  };

  // Lays the tensors out in files, in the given order, and reserves their room on the disk. Throws
  // Error: the folder exists, a partial folder is left (or with `resume` is missing or of another
  // plan), a name twice, too little room.
  CheckpointWriter(std::filesystem::path folder, std::vector<TensorPlan> tensors, Options options);
  // Removes the partial folder, unless it was finished or kept.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // The tensor's bytes, which must be as many as planned. Throws Error that names the file.
  void write(const std::string& name, const void* data, int64_t size_bytes);
  // The same from pieces, one behind the other.
  void write(const std::string& name, std::span<const std::span<const uint8_t>> pieces);
  // A small file of the folder, whole or not at all.
  void write_file(const std::string& name, const std::string& bytes);
  // All that was written is on the disk when it returns.
  void sync();
  // From now on a failure leaves the partial folder, so that a later run can resume.
  void keep() { kept_ = true; }
  // Writes the index and gives the folder its name.
  void finish();

  const std::filesystem::path& partial_folder() const { return partial_; }
  int64_t size_bytes() const { return size_bytes_; }  // of all files with tensors

 private:
  struct File {
    std::filesystem::path path{};
    std::string header{};
    int64_t size_bytes = 0;
    int descriptor = -1;
  };
  struct Place {
    size_t file = 0;
    int64_t offset = 0;
    int64_t size_bytes = 0;
  };

  void lay_out(const std::vector<TensorPlan>& tensors, int64_t file_bytes);
  void create_files();
  void reopen_files(bool begun);
  static void reserve(const File& file);
  std::string index() const;
  void close_files();

  const std::filesystem::path folder_, partial_;
  std::vector<File> files_;
  std::map<std::string, Place> places_;
  int64_t size_bytes_ = 0;
  bool kept_ = false;
  bool finished_ = false;
};

int64_t total_bytes(const std::vector<TensorPlan>& tensors);

// Throws Error that the folder is there already, if it is.
void check_is_new(const std::filesystem::path& folder);

// The folder that a writer of `folder` fills.
std::filesystem::path partial_folder_of(const std::filesystem::path& folder);

}  // namespace nibble
