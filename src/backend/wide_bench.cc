#include <algorithm>
#include <memory>

#include "backend/bench.h"

namespace nibble {
namespace {

using benchmark::State;

// Weights of one shape on the backend, made when the first row asks for them and kept.
class Copies {
 public:
  Copies(Backend& backend, Use use, Format format, int64_t count, int64_t rows, int64_t cols,
         int64_t most = 64)
      : backend_(backend),
        use_(use),
        format_(format),
        count_(count),
        rows_(rows),
        cols_(cols),
        most_(most) {}

  const std::vector<Weight>& get() {
    if (!weights_.empty()) return weights_;
    std::mt19937 random(1);
    const Weight host = random_weight("w", use_, format_, count_, rows_, cols_, random);
    const int64_t copies = copies_beyond_caches(storage_bytes(host), most_);
    for (int64_t i = 0; i < copies; ++i) weights_.push_back(backend_.upload(host));
    return weights_;
  }

 private:
  Backend& backend_;
  Use use_;
  Format format_;
  int64_t count_, rows_, cols_, most_;
  std::vector<Weight> weights_;
};

constexpr int64_t kHidden = 2048, kVocab = 154880;
constexpr int kExperts = 48, kTopK = 4;
constexpr int64_t kExpertWidth = 1536;

DeviceMatrix random_matrix(Backend& backend, int64_t rows, int64_t cols, DType dtype) {
  std::mt19937 random(2);
  return DeviceMatrix(backend, rows, cols, random_floats(rows * cols, random), dtype);
}

// Logits are FP32, other results activations.
void linear(State& state, Backend& backend, const std::vector<Weight>& weights, int64_t rows) {
  const Weight& w = weights[0];
  const DType dtype = backend.activation_dtype();
  const DeviceMatrix x = random_matrix(backend, rows, w.cols, dtype);
  const DeviceMatrix out(backend, rows, w.rows, w.use == Use::kHead ? DType::kF32 : dtype);
  replay_copies(state, backend, int64_t(weights.size()), out.tensor(),
                [&](int64_t i) { backend.linear(x.tensor(), weights[size_t(i)], out.tensor()); });
  // Of a head its INT8 codes.
  const double bytes = w.use == Use::kHead ? double(w.rows * w.cols) : double(storage_bytes(w));
  const double copies = double(weights.size());
  count(state, copies * bytes, copies * 2.0 * double(rows * w.rows * w.cols));
}

// Routings of `rows` rows, all experts equally likely, and how many different ones they have.
double random_routings(std::vector<int32_t>& chosen, int64_t routings, int64_t rows) {
  std::mt19937 random(1);
  std::vector<int32_t> experts(kExperts);
  double distinct = 0;
  for (int64_t i = 0; i < routings; ++i) {
    std::vector<bool> seen(kExperts);
    for (int64_t t = 0; t < rows; ++t) {
      for (int e = 0; e < kExperts; ++e) experts[size_t(e)] = e;
      std::ranges::shuffle(experts, random);
      chosen.insert(chosen.end(), experts.begin(), experts.begin() + kTopK);
      for (int k = 0; k < kTopK; ++k) seen[size_t(experts[size_t(k)])] = true;
    }
    distinct += double(std::ranges::count(seen, true));
  }
  return distinct;
}

// Each copy a routing of its own, over the same experts.
void experts(State& state, Backend& backend, const Weight& gate_up, const Weight& down,
             int64_t rows) {
  constexpr int64_t kCopies = 12;
  const DType dtype = backend.activation_dtype();
  const DeviceMatrix x = random_matrix(backend, rows, kHidden, dtype);
  const DeviceMatrix out(backend, rows, kHidden, dtype);
  const int64_t pairs = rows * kTopK;
  const DeviceMatrix weights(backend, rows, kTopK, std::vector<float>(size_t(pairs), 0.25f));
  const DeviceMatrix ids(backend, kCopies * rows, kTopK, DType::kI32);
  std::vector<int32_t> chosen;
  const double distinct = random_routings(chosen, kCopies, rows);
  backend.write(ids.tensor().data, chosen.data(), chosen.size() * sizeof(int32_t));
  replay_copies(state, backend, kCopies, out.tensor(), [&](int64_t i) {
    const Tensor routed(static_cast<int32_t*>(ids.tensor().data) + i * pairs, DType::kI32, rows,
                        kTopK);
    backend.experts(x.tensor(), {routed, weights.tensor()}, gate_up, down, out.tensor());
  });
  count(state, distinct * double(storage_bytes(gate_up) + storage_bytes(down)) / kExperts,
        6.0 * double(kCopies * pairs * kExpertWidth * kHidden));
}

constexpr int64_t kRuns = 24;  // of an operation whose weights are nothing

// x += delta; out = x's norm: the stream read and written, delta read, out written.
void norm(State& state, Backend& backend, int64_t rows) {
  std::mt19937 random(1);
  const DType dtype = backend.activation_dtype();
  const Weight gain =
      backend.upload(random_weight("gain", Use::kVector, Format::kBF16, 1, 1, kHidden, random));
  const DeviceMatrix x = random_matrix(backend, rows, kHidden, DType::kF32);
  const DeviceMatrix delta = random_matrix(backend, rows, kHidden, dtype);
  const DeviceMatrix out(backend, rows, kHidden, dtype);
  replay_copies(state, backend, kRuns, out.tensor(), [&](int64_t) {
    backend.add_rms_norm(x.tensor(), delta.tensor(), gain, 1e-5f, out.tensor());
  });
  count(state, double(kRuns * rows * kHidden) * double(8 + 2 * dtype_bytes(dtype)), 0);
}

void silu(State& state, Backend& backend, int64_t rows) {
  constexpr int64_t kWidth = 10240;
  const DType dtype = backend.activation_dtype();
  const DeviceMatrix gate_up = random_matrix(backend, rows, 2 * kWidth, dtype);
  const DeviceMatrix out(backend, rows, kWidth, dtype);
  replay_copies(state, backend, kRuns, out.tensor(),
                [&](int64_t) { backend.silu_mul(gate_up.tensor(), out.tensor()); });
  count(state, double(kRuns * rows * 3 * kWidth) * double(dtype_bytes(dtype)), 0);
}

void route(State& state, Backend& backend, int64_t rows) {
  std::mt19937 random(1);
  const Weight router = backend.upload(
      random_weight("router", Use::kRouter, Format::kBF16, 1, kExperts, kHidden, random));
  const Weight bias =
      backend.upload(random_weight("bias", Use::kVector, Format::kF32, 1, 1, kExperts, random));
  const RouterShape shape{.num_experts = kExperts, .top_k = kTopK, .scaling = 1.8f};
  const DeviceMatrix x = random_matrix(backend, rows, kHidden, backend.activation_dtype());
  const DeviceMatrix ids(backend, rows, kTopK, DType::kI32), weights(backend, rows, kTopK);
  replay_copies(state, backend, kRuns, weights.tensor(), [&](int64_t) {
    backend.route(x.tensor(), router, bias, shape, {ids.tensor(), weights.tensor()});
  });
  count(state, double(kRuns * storage_bytes(router)),
        double(kRuns * rows * kExperts * kHidden) * 2);
}

void sample(State& state, Backend& backend, int64_t rows, const SampleRow& row) {
  const DeviceMatrix logits = random_matrix(backend, rows, kVocab, DType::kF32);
  const DeviceMatrix tokens(backend, rows, 1, DType::kI32), logprobs(backend, rows, 1);
  const SampleBatch batch{.rows = std::vector<SampleRow>(size_t(rows), row)};
  constexpr int64_t kDraws = 8;  // calls, which bring parameters: they cannot be replayed
  float first = 0;
  for (auto _ : state) {
    for (int64_t i = 0; i < kDraws; ++i) {
      backend.sample(logits.tensor(), batch, {tokens.tensor(), logprobs.tensor(), Tensor()});
    }
    backend.read(logprobs.tensor().data, &first, sizeof(first));
  }
  report_each(state, kDraws);
  count(state, double(kDraws * rows * kVocab) * sizeof(float), 0);
}

void add_linear_rows(Backend& backend, const std::vector<int64_t>& rows) {
  struct Shape {
    Use use;
    int64_t outputs, inputs;
    Format format;
  };
  const Shape shapes[] = {
      {Use::kLinear, 1344, kHidden, Format::kNvfp4},
      {Use::kLinear, 5120, 768, Format::kNvfp4},
      {Use::kLinear, kHidden, 5120, Format::kNvfp4},
      {Use::kLinear, 3072, kHidden, Format::kNvfp4},
      {Use::kLinear, kHidden, 1536, Format::kNvfp4},
      {Use::kLinear, 20480, kHidden, Format::kNvfp4},
      {Use::kLinear, kHidden, 10240, Format::kNvfp4},
      {Use::kLinear, kHidden, 5120, Format::kBF16},
      {Use::kLinear, kVocab, kHidden, Format::kBF16},
      {Use::kHead, kVocab, kHidden, Format::kBF16},
  };
  for (const Shape& s : shapes) {
    const auto weights = std::make_shared<Copies>(backend, s.use, s.format, 1, s.outputs, s.inputs);
    for (const int64_t r : rows) {
      if (s.outputs == kVocab && r > 64) continue;  // a head has no more rows
      const std::string format = s.use == Use::kHead         ? "/int8"
                                 : s.format == Format::kBF16 ? "/bf16"
                                                             : "/nvfp4";
      add_row((s.use == Use::kHead ? "wide/head/" : "wide/linear/") +
                  dims({r, s.outputs, s.inputs}) + format,
              [&backend, weights, r](State& state) { linear(state, backend, weights->get(), r); });
    }
  }
}

}  // namespace

void add_wide_rows(Backend& backend) {
  const std::vector<int64_t> rows = backend.is_card()
                                        ? std::vector<int64_t>{1, 2, 4, 8, 16, 64, 512, 2048}
                                        : std::vector<int64_t>{1, 2, 4, 16, 512};
  add_linear_rows(backend, rows);
  const auto gate_up = std::make_shared<Copies>(backend, Use::kGatedExperts, Format::kNvfp4,
                                                kExperts, 2 * kExpertWidth, kHidden, 1);
  const auto down = std::make_shared<Copies>(backend, Use::kExperts, Format::kNvfp4, kExperts,
                                             kHidden, kExpertWidth, 1);
  for (const int64_t r : rows) {
    add_row("wide/experts/" + dims({r, kExperts, kTopK, kHidden, kExpertWidth}) + "/nvfp4",
            [&backend, gate_up, down, r](State& state) {
              experts(state, backend, gate_up->get()[0], down->get()[0], r);
            });
  }
  for (const int64_t r : {1, 64, 2048}) {
    add_row("wide/norm/" + dims({r, kHidden}),
            [&backend, r](State& state) { norm(state, backend, r); });
    add_row("wide/route/" + dims({r, kExperts, kHidden}),
            [&backend, r](State& state) { route(state, backend, r); });
    add_row("wide/silu/" + dims({r, 10240}),
            [&backend, r](State& state) { silu(state, backend, r); });
  }
  for (const int64_t r : {1, 64}) {
    add_row("wide/sample/greedy/" + dims({r, kVocab}),
            [&backend, r](State& state) { sample(state, backend, r, {}); });
    add_row("wide/sample/top_p/" + dims({r, kVocab}), [&backend, r](State& state) {
      sample(state, backend, r, {.temperature = 1.0f, .top_p = 0.95f, .uniform = 0.7f});
    });
  }
}

}  // namespace nibble
