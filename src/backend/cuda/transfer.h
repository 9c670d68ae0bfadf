// Small arrays between pinned host memory and the card, by kernels in order with others. A copy
// engine would take turns with them, each waiting for the other's end: its three copies took 21 us
// of a step of one row on an H100, 11 more than these kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/cuda/launch.h"

namespace nibble::cuda {

// Bytes of an array; both in whole pieces of 16.
struct ByteSpan {
  size_t first = 0, bytes = 0;
};
inline constexpr int kMostSpans = 8;

// Brings these parts of pinned memory to the same places of the card's; aligned to 16 bytes. The
// host must have written them before the call and leave them alone until the card is past it.
// Kernels may read them before they wait for others: none begins until they are there.
void bring(const Context& context, void* to, const void* pinned, std::span<const ByteSpan> spans);

// Leaves whole 32-bit words in pinned memory, for the host to read once the card is past it.
void leave(const Context& context, const void* from, void* pinned, size_t bytes);

}  // namespace nibble::cuda
