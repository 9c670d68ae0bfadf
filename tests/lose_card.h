// Makes this process lose the card that it uses, as a fault of the card would.
#pragma once

#include <string>

namespace nibble {

// A kernel writes where no memory is: every call of CUDA fails from then on. Returns CUDA's words
// for the error. Any thread.
std::string lose_card();

}  // namespace nibble
