// What upload() of a weight leaves on the card, by use: tables and vectors as plain rows here;
// matrices, experts and the latent's projection in the layouts of linear.h, experts.h and mla.h.
#pragma once

#include <memory>
#include <vector>

#include "backend/cuda/feed.h"
#include "backend/cuda/memory.h"
#include "base/check.h"
#include "quant/weight.h"

namespace nibble::cuda {

// Where uploads put what they make.
struct Uploads {
  const Device& device;
  cudaStream_t stream;
  Arena& arena;
  Feed& feed;
};

// A row-major matrix on the card. Lives as long as the arena that it is in.
struct DeviceRows {
  const float* data = nullptr;
};

// Every row decoded to FP32.
std::shared_ptr<const void> upload_rows(const Uploads& to, const Weight& host);

// What an uploaded weight holds.
template <typename T>
const T& resident_as(const Weight& w) {
  CHECK(w.resident != nullptr, "%s is not uploaded", w.name.c_str());
  return *static_cast<const T*>(w.resident.get());
}

}  // namespace nibble::cuda
