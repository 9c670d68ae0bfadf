// For tests of code that Highway compiles for several instruction sets.
#pragma once

#include <cstdint>

#include "hwy/highway.h"

namespace nibble {

// Where there is one, Highway's headers call it directly and its library is not needed.
inline constexpr bool kOneTarget = (HWY_TARGETS & (HWY_TARGETS - 1)) == 0;

// Runs body(target) on every instruction set that this machine has.
template <typename Body>
void for_each_target(Body body) {
  if constexpr (kOneTarget) return body(HWY_TARGETS);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body(target);
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace nibble
