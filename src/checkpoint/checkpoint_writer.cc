#include "checkpoint/checkpoint_writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr int64_t kLengthBytes = 8;  // of a header, before it

[[noreturn]] void fail(const fs::path& path, const std::string& what) {
  throw Error(path.string() + ": " + what + ": " + std::strerror(errno));
}

void write_all(int descriptor, const fs::path& path, const void* data, int64_t size,
               int64_t offset) {
  const char* bytes = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::pwrite(descriptor, bytes, size_t(size), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail(path, "cannot be written");
    bytes += written;
    offset += written;
    size -= written;
  }
}

void sync_folder(const fs::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail(folder, "cannot be opened");
  const bool synced = ::fsync(descriptor) == 0;
  ::close(descriptor);
  if (!synced) fail(folder, "cannot be written");
}

std::string file_name(size_t number, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", number + 1, count);
  return name;
}

// "12.3 GB"
std::string gigabytes(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*f GB", bytes < 1e9 ? 3 : 1, bytes / 1e9);
  return text;
}

}  // namespace

int64_t TensorPlan::size_bytes() const {
  int64_t bytes = int64_t(dtype_bytes(dtype));
  for (const int64_t dimension : shape) bytes *= dimension;
  return bytes;
}

int64_t total_bytes(const std::vector<TensorPlan>& tensors) {
  int64_t bytes = 0;
  for (const TensorPlan& tensor : tensors) bytes += tensor.size_bytes();
  return bytes;
}

void check_is_new(const fs::path& folder) {
  std::error_code ignored;
  if (folder.empty()) throw Error("the name of the folder to make is empty");
  const fs::path plain = folder.has_filename() ? folder : folder.parent_path();
  if (fs::exists(fs::symlink_status(plain, ignored))) {
    throw Error(folder.string() + ": is there already; name a new folder");
  }
}

fs::path partial_folder_of(const fs::path& folder) {
  const fs::path plain = folder.has_filename() ? folder : folder.parent_path();
  return plain.string() + ".partial";
}

CheckpointWriter::CheckpointWriter(fs::path folder, std::vector<TensorPlan> tensors,
                                   Options options)
    : folder_(folder.has_filename() ? folder : folder.parent_path()),
      partial_(partial_folder_of(folder)) {
  std::error_code ignored;
  check_is_new(folder_);
  lay_out(tensors, options.file_bytes);
  try {
    if (options.resume) {
      reopen_files(options.begun);
    } else {
      create_files();
    }
  } catch (...) {
    close_files();
    if (!kept_) fs::remove_all(partial_, ignored);
    throw;
  }
}

CheckpointWriter::~CheckpointWriter() {
  close_files();
  std::error_code ignored;
  if (!finished_ && !kept_) fs::remove_all(partial_, ignored);
}

void CheckpointWriter::lay_out(const std::vector<TensorPlan>& tensors, int64_t file_bytes) {
  std::vector<std::vector<const TensorPlan*>> contents(1);
  int64_t filled = 0;
  for (const TensorPlan& tensor : tensors) {
    if (filled > 0 && filled + tensor.size_bytes() > file_bytes) {
      contents.emplace_back();
      filled = 0;
    }
    contents.back().push_back(&tensor);
    filled += tensor.size_bytes();
  }
  for (size_t i = 0; i < contents.size(); ++i) {
    files_.push_back({.path = partial_ / file_name(i, contents.size())});
  }
  for (size_t i = 0; i < contents.size(); ++i) {
    // Wide elements first: then all are aligned.
    std::stable_sort(contents[i].begin(), contents[i].end(), [](auto* a, auto* b) {
      return dtype_bytes(a->dtype) > dtype_bytes(b->dtype);
    });
    int64_t offset = 0;
    ordered_json header;
    header["__metadata__"] = {{"format", "pt"}};
    for (const TensorPlan* tensor : contents[i]) {
      const int64_t end = offset + tensor->size_bytes();
      header[tensor->name] = {{"dtype", dtype_name(tensor->dtype)},
                              {"shape", tensor->shape},
                              {"data_offsets", {offset, end}}};
      const bool added =
          places_.emplace(tensor->name, Place{i, offset, tensor->size_bytes()}).second;
      CHECK(added, "%s is planned twice", tensor->name.c_str());
      offset = end;
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    std::string& bytes = files_[i].header;
    for (int byte = 0; byte < 8; ++byte) bytes += char(text.size() >> (8 * byte));
    bytes += text;
    files_[i].size_bytes = int64_t(bytes.size()) + offset;
    size_bytes_ += files_[i].size_bytes;
  }
  for (auto& [name, place] : places_) place.offset += int64_t(files_[place.file].header.size());
}

void CheckpointWriter::create_files() {
  std::error_code error;
  if (fs::exists(partial_, error)) {
    kept_ = true;  // not ours
    throw Error(partial_.string() +
                ": is left from a run that was stopped; delete it, or go on with it where the "
                "command has --resume");
  }
  fs::create_directories(partial_, error);
  if (error) throw Error(partial_.string() + ": " + error.message());
  const fs::space_info space = fs::space(partial_, error);
  if (!error && int64_t(space.available) < size_bytes_) {
    throw Error(partial_.string() + ": the disk has " + gigabytes(double(space.available)) +
                " free; " + gigabytes(double(size_bytes_)) + " are needed");
  }
  for (File& file : files_) {
    file.descriptor = ::open(file.path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file.descriptor < 0) fail(file.path, "cannot be created");
    reserve(file);
  }
}

// The header's length comes last: without it a file has not begun.
void CheckpointWriter::reserve(const File& file) {
  errno = ::posix_fallocate(file.descriptor, 0, file.size_bytes);
  if (errno != 0) fail(file.path, "no room for its " + gigabytes(double(file.size_bytes)));
  const char* header = file.header.data();
  write_all(file.descriptor, file.path, header + kLengthBytes,
            int64_t(file.header.size()) - kLengthBytes, kLengthBytes);
  write_all(file.descriptor, file.path, header, kLengthBytes, 0);
}

void CheckpointWriter::reopen_files(bool begun) {
  kept_ = true;
  if (!fs::exists(partial_)) {
    throw Error(partial_.string() + ": is missing; --resume finds nothing to go on with");
  }
  const int flags = O_RDWR | O_CLOEXEC | (begun ? 0 : O_CREAT);
  for (File& file : files_) {
    file.descriptor = ::open(file.path.c_str(), flags, 0666);
    if (file.descriptor < 0) fail(file.path, "--resume finds nothing to go on with");
    struct stat status {};
    std::string header(file.header.size(), '\0');
    const ssize_t read = ::pread(file.descriptor, header.data(), header.size(), 0);
    if (!begun && read >= 0 && header.starts_with(std::string(kLengthBytes, '\0'))) {
      reserve(file);
    } else if (::fstat(file.descriptor, &status) != 0 || status.st_size != file.size_bytes ||
               read != ssize_t(header.size()) || header != file.header) {
      throw Error(file.path.string() +
                  ": is of a run with another model or other options; delete " + partial_.string() +
                  " to start afresh");
    }
  }
}

void CheckpointWriter::write(const std::string& name, const void* data, int64_t size_bytes) {
  const std::span<const uint8_t> whole(static_cast<const uint8_t*>(data), size_t(size_bytes));
  write(name, {&whole, 1});
}

void CheckpointWriter::write(const std::string& name,
                             std::span<const std::span<const uint8_t>> pieces) {
  const auto found = places_.find(name);
  CHECK(found != places_.end(), "%s is not planned", name.c_str());
  const Place& place = found->second;
  int64_t size_bytes = 0;
  for (const auto& piece : pieces) size_bytes += int64_t(piece.size());
  CHECK(size_bytes == place.size_bytes, "%s: %ld bytes, planned %ld", name.c_str(),
        long(size_bytes), long(place.size_bytes));
  const File& file = files_[place.file];
  int64_t offset = place.offset;
  for (const auto& piece : pieces) {
    write_all(file.descriptor, file.path, piece.data(), int64_t(piece.size()), offset);
    offset += int64_t(piece.size());
  }
}

void CheckpointWriter::write_file(const std::string& name, const std::string& bytes) {
  const fs::path path = partial_ / name, draft = partial_ / (name + ".new");
  const int descriptor = ::open(draft.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) fail(draft, "cannot be created");
  try {
    write_all(descriptor, draft, bytes.data(), int64_t(bytes.size()), 0);
    if (::fsync(descriptor) != 0) fail(draft, "cannot be written");
  } catch (...) {
    ::close(descriptor);
    throw;
  }
  ::close(descriptor);
  if (::rename(draft.c_str(), path.c_str()) != 0) fail(path, "cannot be written");
}

void CheckpointWriter::sync() {
  for (const File& file : files_) {
    if (::fdatasync(file.descriptor) != 0) fail(file.path, "cannot be written");
  }
  sync_folder(partial_);
}

std::string CheckpointWriter::index() const {
  ordered_json json;
  int64_t total = 0;
  for (const auto& [name, place] : places_) total += place.size_bytes;
  json["metadata"]["total_size"] = total;
  for (const auto& [name, place] : places_) {
    json["weight_map"][name] = files_[place.file].path.filename().string();
  }
  return json.dump(2) + "\n";
}

void CheckpointWriter::finish() {
  write_file("model.safetensors.index.json", index());
  sync();
  close_files();
  if (::rename(partial_.c_str(), folder_.c_str()) != 0) {
    fail(folder_, "cannot be given its name");
  }
  finished_ = true;
  sync_folder(folder_.has_parent_path() ? folder_.parent_path() : fs::path("."));
}

void CheckpointWriter::close_files() {
  for (File& file : files_) {
    if (file.descriptor >= 0) ::close(file.descriptor);
    file.descriptor = -1;
  }
}

}  // namespace nibble
