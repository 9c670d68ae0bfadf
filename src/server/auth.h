// API keys: "Authorization: Bearer KEY" or "X-Api-Key: KEY".
#pragma once

#include <array>
#include <string>
#include <vector>

#include "server/http.h"

namespace nibble {

class ApiKeys {
 public:
  // Keeps hashes only.
  explicit ApiKeys(const std::vector<std::string>& keys);

  // True without keys. The time it takes does not depend on how much of a key is right.
  bool allow(const HttpRequest& request) const;

 private:
  using Hash = std::array<unsigned char, 32>;
  bool is_key(std::string_view text) const;

  std::vector<Hash> hashes_;
};

}  // namespace nibble
