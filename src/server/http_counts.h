// Answers by endpoint, method and status. I/O thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>

namespace nibble {

class HttpCounts {
 public:
  // (path of the route, method, status)
  using Key = std::tuple<std::string, std::string, int>;

  void add(std::string path, std::string method, int status) {
    ++counts_[{std::move(path), std::move(method), status}];
  }
  const std::map<Key, int64_t>& all() const { return counts_; }

 private:
  std::map<Key, int64_t> counts_;
};

}  // namespace nibble
