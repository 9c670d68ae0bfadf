#include <string_view>

#include "server/answer_parts.h"
#include "server/endpoints.h"
#include "server/errors.h"

namespace nibble {
namespace {

constexpr std::string_view kModelsPath = "/v1/models/";

void write_model(const std::string& name, const Service& service, JsonWriter& writer) {
  writer.begin_object().key("id").string(name).key("object").string("model");
  writer.key("created").integer(service.started_s).key("owned_by").string("nibble");
  writer.key("root").string(service.options.model_root).key("parent").null();
  writer.key("max_model_len").integer(service.engine_options.max_model_len);
  writer.key("permission").begin_array().end_array().end_object();
}

}  // namespace

Answer list_models(const Service& service, const HttpRequest&) {
  JsonWriter writer;
  writer.begin_object().key("object").string("list").key("data").begin_array();
  for (const std::string& name : service.options.model_names) write_model(name, service, writer);
  return HttpResponse{.body = writer.end_array().end_object().take()};
}

Answer show_model(const Service& service, const HttpRequest& request) {
  const std::string_view wanted = std::string_view(request.path).substr(kModelsPath.size());
  for (const std::string& name : service.options.model_names) {
    if (name != wanted) continue;
    JsonWriter writer;
    write_model(name, service, writer);
    return HttpResponse{.body = writer.take()};
  }
  return error_response(404, "The model `" + std::string(wanted) + "` does not exist.", "model");
}

}  // namespace nibble
