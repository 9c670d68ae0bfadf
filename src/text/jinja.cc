#include "text/jinja.h"

#include "text/bridge/error.h"

namespace nibble {
namespace {

struct TemplateDeleter {
  void operator()(NibbleTemplate* compiled) const { nibble_template_free(compiled); }
};

JinjaError error_of(const BridgeError& error) {
  using Kind = JinjaError::Kind;
  Kind kind = Kind::kRuntime;
  if (error.raw.kind == kNibbleSyntax) kind = Kind::kSyntax;
  if (error.raw.kind == kNibbleRaised) kind = Kind::kRaised;
  if (error.raw.kind == kNibbleUndefined) kind = Kind::kUndefined;
  if (error.raw.kind == kNibbleSecurity) kind = Kind::kSecurity;
  return JinjaError(kind, static_cast<int>(error.raw.line), error.message);
}

}  // namespace

struct Jinja::Impl {
  std::unique_ptr<NibbleTemplate, TemplateDeleter> compiled;
};

Jinja::Jinja(const std::string& source, const JinjaOptions& options)
    : impl_(std::make_unique<Impl>()) {
  BridgeError error;
  impl_->compiled.reset(nibble_template_load(source.data(), source.size(), options.trim_blocks,
                                             options.lstrip_blocks, &error.raw));
  if (!impl_->compiled) throw error_of(error);
}

Jinja::~Jinja() = default;

std::string Jinja::render(const std::string& context_json, int64_t wall_clock_s) const {
  BridgeError error;
  std::string text;
  if (!nibble_template_render(impl_->compiled.get(), context_json.data(), context_json.size(),
                              wall_clock_s, append_text, &text, &error.raw)) {
    throw error_of(error);
  }
  return text;
}

}  // namespace nibble
