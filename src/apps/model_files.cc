#include "apps/model_files.h"

#include "base/error.h"
#include "checkpoint/checkpoint_writer.h"
#include "model/glm_builtin.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

fs::path pocket_folder() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (error) throw Error("cannot find the pocket model: /proc is not mounted; name a model folder");
  const fs::path folder = program.parent_path();
  for (const fs::path& candidate :
       {folder / "../models/pocket", folder / "../share/nibble/models/pocket"}) {
    if (fs::exists(candidate / "config.json")) return fs::canonical(candidate);
  }
  throw Error("the pocket model is neither in " + (folder / "../models/pocket").string() +
              " nor in " + (folder / "../share/nibble/models/pocket").string() +
              "; name a model folder");
}

}  // namespace

fs::path find_model(const std::string& model) {
  if (model.empty() || (model == "pocket" && !fs::exists(model))) return pocket_folder();
  const fs::path folder(model);
  if (!fs::exists(folder)) {
    if (builtin_config(model)) return pocket_folder();
    const bool hub_name = model.find('/') != std::string::npos && model[0] != '/' &&
                          model[0] != '.' && model.find('/') == model.rfind('/');
    throw Error(model + ": there is no such folder" +
                (hub_name ? "; if this is the name of a model on a hub, download it first and give "
                            "the folder"
                          : ""));
  }
  if (!fs::is_directory(folder)) {
    throw Error(model + ": is a file; give the folder that holds config.json and *.safetensors");
  }
  if (!fs::exists(folder / "config.json")) {
    throw Error(model +
                ": has no config.json; a model is a folder with config.json, "
                "tokenizer.json and *.safetensors");
  }
  return folder;
}

GlmConfig config_of(const ModelOptions& o, const fs::path& folder) {
  const bool dummy = o.load_format == "dummy";
  if (!dummy && o.load_format != "auto" && o.load_format != "safetensors") {
    throw Error("--load-format " + o.load_format +
                ": only safetensors are read; use auto, safetensors or dummy");
  }
  const auto builtin = fs::exists(o.model) ? std::nullopt : builtin_config(o.model);
  if (builtin && !dummy) {
    throw Error(o.model +
                ": is a configuration without weights; add --load-format dummy to measure it, or "
                "give the folder of a checkpoint");
  }
  GlmConfig config = builtin ? *builtin : GlmConfig::load(folder);
  if (o.num_hidden_layers > 0) {
    if (!dummy) throw Error("--num-hidden-layers goes with --load-format dummy only");
    if (o.num_hidden_layers > config.num_layers) {
      throw Error("--num-hidden-layers " + std::to_string(o.num_hidden_layers) +
                  ": the model has " + std::to_string(config.num_layers));
    }
    config.num_layers = o.num_hidden_layers;
  }
  if (!o.save.empty()) {
    if (!dummy) throw Error("--save goes with --load-format dummy only");
    check_is_new(o.save);
  }
  return config;
}

std::string model_name(const std::string& model) {
  if (model.empty()) return "pocket";
  return model.size() > 1 && model.back() == '/' ? model.substr(0, model.size() - 1) : model;
}

}  // namespace nibble
