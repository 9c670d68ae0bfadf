#include "server/endpoints.h"
#include "server/errors.h"
#include "server/json_writer.h"

namespace nibble {

Answer health(const Service& service, const HttpRequest&) {
  if (!service.healthy()) return error_response(503, "The engine is not running.");
  return HttpResponse{.content_type = ""};
}

Answer version(const Service& service, const HttpRequest&) {
  JsonWriter writer;
  writer.begin_object().key("version").string(service.options.version).end_object();
  return HttpResponse{.body = writer.take()};
}

}  // namespace nibble
