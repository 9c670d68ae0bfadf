#include <cstdio>

#include "apps/subcommands.h"
#include "backend/create.h"

namespace nibble {

int version() {
  std::printf("nibble %s\n", NIBBLE_VERSION);
  std::printf("  %s\n", create_backend({})->description().c_str());
  return 0;
}

}  // namespace nibble
