// Finding models: the pocket model beside the program, or a folder that the user names.
#pragma once

#include <filesystem>
#include <string>

namespace nibble {

// The folder of `model`; empty or "pocket" is the pocket model: ../models/pocket beside the program
// in a build tree, ../share/nibble/models/pocket where it is installed. Throws Error that says what
// was looked for, and what a folder must contain.
std::filesystem::path find_model(const std::string& model);

// What the server calls the model unless told otherwise: the name as the user gave it, "pocket" for
// the pocket model.
std::string model_name(const std::string& model);

}  // namespace nibble
