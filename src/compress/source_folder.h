// The folder of a checkpoint that is compressed: what must be true of it, and what of it is copied.
#pragma once

#include <filesystem>
#include <set>
#include <string>

#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/json_file.h"
#include "model/glm_config.h"

namespace nibble {

// Throws Error that names what gives it away: the checkpoint is quantized already.
void refuse_quantized(const std::filesystem::path& folder, const GlmConfig& config,
                      const Checkpoint& checkpoint);

// Reads all tensors but those named. Throws Error that names the tensor: it has a NaN or an
// infinity.
void check_finite(const Checkpoint& checkpoint, const std::set<std::string>& except,
                  ThreadPool& pool);

// config.json with its keys in their order.
nlohmann::ordered_json read_config(const std::filesystem::path& folder);

// Tokenizer, template, sampling defaults and licences: files that stay true when weights change.
void copy_files(const std::filesystem::path& folder, CheckpointWriter& writer);

}  // namespace nibble
