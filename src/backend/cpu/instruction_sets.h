// Which of this machine's instruction sets the kernels use: the one table of CPUID bits.
#pragma once

#include <string>

namespace nibble {

// The one that Highway dispatches vector kernels to.
std::string vector_target_name();

// Those that Highway does not know.
struct InstructionSets {
  bool avx2 = false;     // and FMA
  bool avxvnni = false;  // and AVX2
  bool avx512 = false;   // F, BW, DQ and VL
  bool avx512vnni = false;
  bool avx512vbmi = false;  // and VNNI
  bool amx_bf16 = false;
  // AVX512-BF16 with dot products that are faster than FP32 multiply-adds: AMD's do twice as many
  // operations a cycle, Intel's fewer.
  bool fast_avx512bf16 = false;
  // In a stream that few rows are multiplied by, the machine looks far enough ahead by itself, and
  // prefetching hinders it. Of AVX-512 machines AMD's do; Intel's read half as fast so.
  bool looks_ahead = false;
};

// Also asks the system to let this process use AMX's registers, once and for all its threads.
InstructionSets instruction_sets();

}  // namespace nibble
