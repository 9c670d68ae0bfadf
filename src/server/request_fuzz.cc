// Bodies of requests through JSON and validation; what passes is rendered and answered.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

#include "base/check.h"
#include "server/errors.h"
#include "server/test_service.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  static TestService service;
  static const bool prepared = [] {
    service.say("why</think>a<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>");
    return true;
  }();
  if (!prepared || size == 0) return 0;
  constexpr const char* kPaths[] = {"/v1/chat/completions", "/v1/completions", "/tokenize",
                                    "/detokenize", "/v1/chat/completions/render"};
  const HttpRequest request{.method = "POST",
                            .path = kPaths[data[0] % std::size(kPaths)],
                            .body = std::string(reinterpret_cast<const char*>(data) + 1, size - 1)};
  Answer answer = service.router.handle(request);
  if (auto* live = std::get_if<std::unique_ptr<LiveAnswer>>(&answer)) {
    CHECK((*live)->advance());
  } else {
    const HttpResponse& response = std::get<HttpResponse>(answer);
    CHECK(response.status == 200 || (response.status >= 400 && response.status <= 404) ||
          response.status == 503);
    if (response.status != 200) CHECK(response.body.size() <= kMaxErrorBodyBytes);
  }
  service.requests.clear();
  service.streams.clear();
  return 0;
}
