// The intrinsics of x86, for the files of one instruction set each, outside of their target
// attributes.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// For the whole file: g++ takes the undefined registers of its own header for ours.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
