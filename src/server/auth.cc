#include "server/auth.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <strings.h>

namespace nibble {
namespace {

std::array<unsigned char, 32> sha256(std::string_view text) {
  std::array<unsigned char, 32> hash;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), hash.data());
  return hash;
}

// The text after "Bearer ", or nothing.
std::string_view bearer_token(std::string_view authorization) {
  constexpr std::string_view kScheme = "Bearer ";
  if (authorization.size() < kScheme.size() ||
      strncasecmp(authorization.data(), kScheme.data(), kScheme.size()) != 0) {
    return {};
  }
  return authorization.substr(kScheme.size());
}

}  // namespace

ApiKeys::ApiKeys(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) hashes_.push_back(sha256(key));
}

bool ApiKeys::allow(const HttpRequest& request) const {
  if (hashes_.empty()) return true;
  const bool by_bearer = is_key(bearer_token(request.header("authorization")));
  const bool by_header = is_key(request.header("x-api-key"));
  return by_bearer || by_header;
}

bool ApiKeys::is_key(std::string_view text) const {
  const Hash hash = sha256(text);
  bool found = false;
  for (const Hash& key : hashes_) {
    found = (CRYPTO_memcmp(hash.data(), key.data(), hash.size()) == 0) || found;
  }
  return found && !text.empty();
}

}  // namespace nibble
