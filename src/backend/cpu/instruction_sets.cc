#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/instruction_sets.cc"
#include "backend/cpu/instruction_sets.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

namespace {

#if defined(__x86_64__)
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kAvxVnni = 1u << 4;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & kAvxVnni) != 0;
}

bool has_amx_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h of newer systems
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

}  // namespace

InstructionSets instruction_sets() {
  InstructionSets sets;
#if defined(__x86_64__)
  sets.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  sets.avxvnni = sets.avx2 && has_avx_vnni();
  sets.avx512 = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vl");
  sets.avx512vnni = sets.avx512 && __builtin_cpu_supports("avx512vnni");
  sets.avx512vbmi = sets.avx512vnni && __builtin_cpu_supports("avx512vbmi");
  sets.fast_avx512bf16 =
      sets.avx512 && __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512bf16");
  sets.looks_ahead = __builtin_cpu_is("amd");
  sets.amx_bf16 = sets.avx512 && has_amx_bf16();
#endif
  return sets;
}

}  // namespace nibble
#endif
