// The linear of the logits (Use::kHead, backend.h): every row from INT8 codes, at half the bytes,
// and again from the BF16 rows where it matters.
//
// Row n of the head is w = scale q + d, q of 8-bit integers; inputs are BF16 and taken as they are.
// So the product of the codes is off by at most |d| |x| and the rounding of both sums, together
// scale * error * |x| with one `error` for all rows, since |d| / scale is about sqrt(K / 12) in
// each. An element can be its row's largest if, with this added, it reaches the best of all with
// theirs subtracted.
#pragma once

#include <memory>

#include "backend/cuda/launch.h"
#include "backend/cuda/packed.h"
#include "base/tensor.h"
#include "quant/weight.h"

namespace nibble::cuda {

struct Head {
  PackedMatrices codes;  // units of 128 columns (head_unit.cuh); the factors are the scales
  PackedMatrices rows;   // BF16
  float error = 0;
  PinnedMemory pinned{};  // the rows, where they are not on the card
};

// Whether the weight's logits are computed so: a head of BF16. Others stay as stored.
bool has_codes(const Weight& w);

// `on_host`: the BF16 rows lie in pinned host memory, of which a step reads those that it computes
// again.
std::shared_ptr<const void> upload_head(const Uploads& to, const Weight& host, bool on_host);

// x [T, K] BF16 or F32, out [T, N] F32.
void head(const Context& context, Tensor x, const Weight& w, Tensor out);

}  // namespace nibble::cuda
