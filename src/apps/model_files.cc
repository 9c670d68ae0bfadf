#include "apps/model_files.h"

#include "base/error.h"

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

std::string model_name(const std::string& model) {
  if (model.empty()) return "pocket";
  return model.size() > 1 && model.back() == '/' ? model.substr(0, model.size() - 1) : model;
}

}  // namespace nibble
