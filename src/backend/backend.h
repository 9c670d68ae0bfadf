// Backend: the whole contract between a model and a machine. Ten operations, each a formula;
// siblings reference/, cpu/ and cuda/ implement it, and backend_test.cc checks every sibling
// against reference/ over the cases of cases.h.
//
// Shapes: T rows of the batch, R rows with logits, D hidden size. Tensors of activations are F32
// unless activation_dtype() says otherwise and may have a row stride; the residual stream, logits,
// routing weights and log-probabilities are always F32. Outputs come last. Tensors of one call
// never alias unless the comment says so. Row counts may be zero.
//
// Promise to callers: a row's result does not depend on the other rows of the batch. Input
// precision and order of summation over K are the same for any number of rows, and attention reads
// latents as stored, those of its own chunk too.
//
// A backend may make one exception, for which prefill is several times faster: products of
// wide_rows() rows or more may round their inputs otherwise than products of fewer (AMX multiplies
// BF16 at seven times the rate of 16-bit integers, but decoding to BF16 halves the speed of one
// row). Then a row's bits also depend on which of the two it was, and on nothing else.
//
// One thread at a time calls a backend. Operations do not fail (CHECK on misuse); allocate and
// upload throw Error when memory runs out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "backend/batch.h"
#include "backend/kv_cache.h"
#include "base/memory_state.h"
#include "base/tensor.h"
#include "quant/weight.h"

namespace nibble {

struct MlaShape {
  int heads = 0;
  int nope_dim = 0;    // of a head's query and key
  int rope_dim = 0;    // of a head's query; of the one key that all heads share
  int value_dim = 0;   // of a head's output
  int latent_dim = 0;  // of the cached latent; a record has latent_dim + rope_dim values
  float rope_theta = 0;
  float norm_eps = 0;  // of the latent's norm

  int query_dim() const { return nope_dim + rope_dim; }
  int record_dim() const { return latent_dim + rope_dim; }
};

struct RouterShape {
  int num_experts = 0;  // to choose from
  int top_k = 0;
  int num_shared = 0;  // experts that every row takes: num_experts, num_experts + 1, ...
  float scaling = 1.0f;
  bool normalize = true;  // weights / their sum, before scaling
};

// Per row: its experts, all different, the chosen before the shared ones, and their weights.
struct Routing {
  Tensor experts;  // [T, top_k + num_shared] i32
  Tensor weights;  // [T, top_k + num_shared] f32
  int num_shared = 0;
};

struct SampleResult {
  Tensor tokens;    // [R, 1] i32: the chosen token (the target where one was given)
  Tensor logprobs;  // [R, 1 + max_logprobs] f32: of the token, then of the best, falling
  Tensor top_ids;   // [R, max_logprobs] i32: the best, ids rising among equals
};

// What the machine can do at best: the denominators of every share that is reported. 0: unknown.
struct MachineLimits {
  double read_bytes_per_second = 0;  // from memory beyond the caches
  double flops_per_second = 0;       // multiply-adds from registers, two operations each
};

// Of Use::kHead: half a step of INT8 with a scale a row, the scale rounded to BF16 if need be; and
// the most elements of a row that are computed again.
inline constexpr double kHeadStep = 0.5 / 127 * (1 + 0x1p-7);
inline constexpr int kHeadCandidates = 256;

inline constexpr int kMostReads = 16;  // of two engines, see Backend::start_read

class Backend {
 public:
  virtual ~Backend() = default;

  // One line for people: device, instruction set, threads.
  virtual std::string description() const = 0;
  // Measured at the call, which takes a second or two.
  virtual MachineLimits measure_limits() = 0;
  virtual DType activation_dtype() const { return DType::kF32; }
  // From how many rows on a matrix's product may round otherwise, see above.
  virtual int64_t wide_rows() const { return INT64_MAX; }
  // From how many tokens on a prompt is computed faster with keys and values expanded.
  virtual int expanded_tokens() const { return 256; }
  // To what linear, experts and kv_b's products with a weight of this format round their inputs:
  // kBF16; kI16: integers with a scale a row, its largest magnitude / 32639 (or not at all those of
  // kv_b's keys that are not expanded); kF32: not at all. Of a product's two ways, the coarser.
  // What kBF16 gives is also how attention rounds queries and probabilities.
  virtual DType product_input_dtype(Format) const { return DType::kF32; }

  // Memory ----------------------------------------------------------------------------------------
  // Of the machine that it computes on: the host's, or the card's.
  virtual MemoryState memory() const { return host_memory(); }
  // Whether it has memory of its own, which is shared out at start.
  virtual bool is_card() const { return false; }
  // Zeroed, aligned to 256 bytes.
  virtual void* allocate(size_t bytes) = 0;
  virtual void free(void* memory) = 0;
  virtual void write(void* memory, const void* host, size_t bytes) = 0;
  // Waits for all earlier operations.
  virtual void read(const void* memory, void* host, size_t bytes) = 0;
  // A read in halves: start_read() is an operation like others, which takes what earlier ones leave
  // in `memory`; finish_read() waits for it and for nothing after it. Then `host`, which is left
  // alone in between, has the bytes. At most kMostReads are unfinished.
  virtual void start_read(const void* memory, void* host, size_t bytes) {
    read(memory, host, bytes);
  }
  virtual void finish_read(void* /*host*/) {}
  // Whether operations return before they are done. Then a caller does well to make the next step's
  // calls before it reads this one's results; Batch::tokens need not be known for that.
  virtual bool runs_behind() const { return false; }
  // Gives the weight the residence and layout that this backend's kernels like. The result keeps
  // `parts` (and thereby decode_row) usable while `source` lives.
  virtual Weight upload(const Weight& host) = 0;

  // Steps -----------------------------------------------------------------------------------------
  // Makes the batch's arrays readable by the operations that follow, until the next call.
  virtual void begin_step(const Batch& batch) = 0;
  // Runs `step`. A backend that can records it and replays the record at later calls with the same
  // key: the key must name everything that changes the calls, except what begin_step() says of the
  // batch's contexts, and `step` must not decide on data. Key 0: not to be recorded.
  virtual void replay(uint64_t key, const std::function<void()>& step) = 0;

  // Rows ------------------------------------------------------------------------------------------
  // out[t] = table[batch.tokens[t]], or of the chosen token that it stands for       out [T, D]
  virtual void embed(const Weight& table, const Batch& batch, Tensor out) = 0;
  // x += delta (when delta.data); out = x / sqrt(mean(x^2) + eps) * gain             all [T, D]
  virtual void add_rms_norm(Tensor x, Tensor delta, const Weight& gain, float eps, Tensor out) = 0;
  // out[i] = x[batch.logit_rows[i]]                                                  out [R, D]
  virtual void gather_rows(Tensor x, const Batch& batch, Tensor out) = 0;

  // Matrices --------------------------------------------------------------------------------------
  // out = x w^T, or out += x w^T                        x [T, K], w [N, K], out [T, N] with stride
  // Use::kHead, never with accumulate: in each row of `out`, every element that can be the row's
  // largest is exact as any linear's; so a greedy choice is too. Any other may have the error of
  // INT8 weights: kHeadStep * max_k |w[n, k]| * sum_k |x[k]|. Where more than kHeadCandidates could
  // be the largest, the whole row is exact.
  virtual void linear(Tensor x, const Weight& w, Tensor out, bool accumulate = false) = 0;
  // out = silu(gate_up[:, :n]) * gate_up[:, n:]                    gate_up [T, 2n], out [T, n]
  virtual void silu_mul(Tensor gate_up, Tensor out) = 0;

  // Multi-head latent attention -------------------------------------------------------------------
  // Cache record of position p = [rms_norm(kv[:latent]) * gain | rotate(kv[latent:], p)].
  // rotate: interleaved pairs (x0, x1) by the angle p * theta^(-2i / rope_dim).
  // kv [T, latent + rope], may have a stride.
  virtual void mla_store(Tensor kv, const Weight& gain, const MlaShape& shape, const Batch& batch,
                         const KvLayer& cache) = 0;
  // Per head: q = [q_nope | rotate(q_rope)], k = [kv_b[:nope] c | rope key], v = kv_b[nope:] c over
  // the cached records c of positions 0 .. own; out = softmax(q k^T / sqrt(query_dim)) v.
  // q [T, heads * query_dim], out [T, heads * value_dim]. All rows are stored before.
  // A backend may compute a segment that is `expanded` in another order: with keys and values made
  // of the records first, which pays from some hundreds of rows on and costs as much as that for
  // fewer. A row then has the same bits in any chunk of an expanded segment, but not the bits that
  // it has in a segment that is not. So that results do not depend on the batch, who makes batches
  // sets the flag by the request alone: all chunks of a prompt, or none.
  virtual void mla_attention(Tensor q, const Weight& kv_b, const MlaShape& shape,
                             const Batch& batch, const KvLayer& cache, Tensor out) = 0;

  // Mixture of experts ----------------------------------------------------------------------------
  // s = sigmoid(x router^T) in FP32; the top_k of s + bias, lowest id first among equals;
  // weights = s / (sum of the chosen s + 1e-20) * scaling; a shared expert's weight is 1.
  virtual void route(Tensor x, const Weight& router, const Weight& bias, const RouterShape& shape,
                     Routing out) = 0;
  // out[t] = sum over k of weights[t, k] * down[e] silu_mul(gate_up[e] x[t]), e = experts[t, k]
  // gate_up: E x [2n, D], down: E x [D, n]
  virtual void experts(Tensor x, const Routing& routing, const Weight& gate_up, const Weight& down,
                       Tensor out) = 0;

  // Sampling --------------------------------------------------------------------------------------
  // Log-probabilities are those of the logits as they come (before edits and temperature). The
  // draw: edits; divide by temperature; drop what is below min_p times the best; keep the top_k;
  // keep the fewest most likely tokens whose probability reaches top_p; renormalise; the first
  // token, in order of falling probability, at which the running sum exceeds `uniform`.
  // logits [R, V], left as they are or not.
  virtual void sample(Tensor logits, const SampleBatch& rows, SampleResult out) = 0;
};

}  // namespace nibble
