// Journal: what of a checkpoint in the making is on the disk, for a run that resumes: its layers,
// and the weights of calibration tokens that were measured before them.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/json_file.h"

namespace nibble {

class Journal {
 public:
  // Whether a run that was stopped left one.
  static bool is_in(const std::filesystem::path& partial_folder);

  // `settings`: what a resumed run must have in common with the one that was stopped. With `resume`
  // reads what that run finished. Throws Error: it had other settings, or the file is damaged.
  Journal(CheckpointWriter& writer, nlohmann::json settings, bool resume);

  // As kept; empty: none were.
  const std::vector<float>& token_weights() const { return token_weights_; }
  // On the disk when it returns, and so is all that was written so far.
  void keep_token_weights(std::vector<float> weights);
  // Entries of the layers that are done, from layer 0 on.
  const std::vector<nlohmann::json>& layers() const { return layers_; }
  // All that was written so far is on the disk when it returns, with the layer's entry.
  void add_layer(nlohmann::json entry);
  // Before the folder is finished.
  void remove();

 private:
  void write();

  CheckpointWriter& writer_;
  nlohmann::json settings_;
  std::vector<float> token_weights_;
  std::vector<nlohmann::json> layers_;
};

}  // namespace nibble
