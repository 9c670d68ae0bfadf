#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/instruction_sets.cc"
#include "backend/cpu/instruction_sets.h"

#include "hwy/foreach_target.h"  // before highway.h
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

const char* target_name() {
  return hwy::TargetName(HWY_TARGET);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(target_name);

std::string vector_target_name() {
  const std::string name = HWY_DYNAMIC_DISPATCH(target_name)();
  return name == "AVX3" ? "AVX-512" : name;
}

InstructionSets instruction_sets() {
  InstructionSets sets;
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  sets.avx512vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  sets.fast_avx512bf16 = avx512 && __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512bf16");
#endif
  return sets;
}

}  // namespace nibble
#endif
