#include "apps/eval_text.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace nibble {
namespace {

constexpr int kPageSize = 16;
constexpr int kRowsAtOnce = 128;  // bounds the logits in memory, whatever the vocabulary

// A model read through one sample after another, in chunks, in a cache of its own.
class Reader {
 public:
  Reader(Runtime& runtime, int max_positions) : runtime_(runtime) {
    const GlmConfig& config = runtime.config;
    const int pages = (max_positions + kPageSize - 1) / kPageSize;
    for (int l = 0; l < config.num_layers; ++l) {
      KvLayer layer{.format = runtime.kv_format,
                    .page_size = kPageSize,
                    .width = config.mla().record_dim(),
                    .latent = config.kv_rank};
      layer.data = runtime.backend->allocate(size_t(kv_page_bytes(layer)) * size_t(pages));
      caches_.push_back(layer);
    }
    for (int p = 0; p < pages; ++p) batch_.pages.push_back(p);
  }
  ~Reader() {
    for (const KvLayer& layer : caches_) runtime_.backend->free(layer.data);
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  int rows_at_once() const {
    return std::min({kRowsAtOnce, runtime_.model->max_rows(), runtime_.model->max_logit_rows()});
  }

  // Reads the sample's tokens [first, last); keeps the logits of these rows, counted from `first`.
  void read(const TextSample& sample, int first, int last, const std::vector<int32_t>& rows) {
    batch_.tokens.assign(sample.ids.begin() + first, sample.ids.begin() + last);
    batch_.segments = {{.num_rows = last - first, .context = first}};
    batch_.logit_rows = rows;
    const Tensor logits = runtime_.model->forward(batch_, caches_);
    logits_.resize(size_t(logits.rows * logits.cols));
    runtime_.backend->read(logits.data, logits_.data(), logits_.size() * sizeof(float));
  }
  std::span<const float> logits(size_t row) const {
    const size_t vocab = size_t(runtime_.config.vocab);
    return std::span(logits_).subspan(row * vocab, vocab);
  }

 private:
  Runtime& runtime_;
  std::vector<KvLayer> caches_;
  Batch batch_;
  std::vector<float> logits_;
};

// ln sum_v e^logit, and the first of the largest.
struct Softmax {
  explicit Softmax(std::span<const float> logits) : logits(logits) {
    best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    const double top = logits[size_t(best)];
    double sum = 0;
    for (const float logit : logits) sum += std::exp(logit - top);
    log_sum = top + std::log(sum);
  }
  double log_probability(size_t v) const { return logits[v] - log_sum; }

  std::span<const float> logits;
  int64_t best = 0;
  double log_sum = 0;
};

double divergence(const Softmax& p, const Softmax& q) {
  double sum = 0;
  for (size_t v = 0; v < p.logits.size(); ++v) {
    const double log_p = p.log_probability(v);
    sum += std::exp(log_p) * (log_p - q.log_probability(v));
  }
  return sum;
}

// Of one token.
struct TokenScore {
  double nll = 0, kl = 0;
  bool same = false;
};

TokenScore score_token(const Softmax& q, const Softmax* p, int32_t target) {
  TokenScore score{.nll = -q.log_probability(size_t(target))};
  if (p != nullptr) {
    score.kl = divergence(*p, q);
    score.same = p->best == q.best;
  }
  return score;
}

void add(const TokenScore& token, bool has_base, TextScore& score) {
  score.nll.add(token.nll);
  if (!has_base) return;
  score.kl.add(token.kl);
  score.same.add(token.same);
}

int longest(const std::vector<TextSample>& samples, const Runtime& model) {
  size_t most = 1;
  for (const TextSample& sample : samples) {
    most = std::max(most, sample.ids.size());
    if (int(sample.ids.size()) > model.config.max_positions) {
      throw Error(sample.place + ": has " + std::to_string(sample.ids.size()) +
                  " tokens, more than the model's " + std::to_string(model.config.max_positions) +
                  " positions");
    }
  }
  return int(most);
}

// The models side by side.
struct Readers {
  std::unique_ptr<Reader> model, base, other;

  // Reads the sample up to `last`, scores what is counted there.
  void score(const TextSample& sample, int first, int last, TextScores& scores) {
    std::vector<int32_t> rows, targets;
    for (const int at : sample.counted) {
      if (at <= first || at > last) continue;
      rows.push_back(at - 1 - first);
      targets.push_back(sample.ids[size_t(at)]);
    }
    for (Reader* reader : {model.get(), base.get(), other.get()}) {
      if (reader != nullptr) reader->read(sample, first, last, rows);
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      std::optional<Softmax> p;
      if (base != nullptr) p.emplace(base->logits(i));
      const Softmax* const truth = p ? &*p : nullptr;
      const TokenScore own = score_token(Softmax(model->logits(i)), truth, targets[i]);
      add(own, base != nullptr, scores.model);
      if (p) scores.base->nll.add(-p->log_probability(size_t(targets[i])));
      if (other == nullptr) continue;
      const TokenScore others = score_token(Softmax(other->logits(i)), truth, targets[i]);
      add(others, base != nullptr, *scores.other);
      scores.difference.nll.add(others.nll - own.nll);
      if (!p) continue;
      scores.difference.kl.add(others.kl - own.kl);
      scores.difference.same.add(double(others.same) - double(own.same));
    }
  }
};

}  // namespace

double Average::standard_error() const {
  if (count_ == 0) return 0;
  const double n = double(count_);
  return std::sqrt(std::max(0.0, squares_ / n - mean() * mean()) / n);
}

TextScores score_text(Runtime& model, Runtime* base, Runtime* other,
                      const std::vector<TextSample>& samples,
                      const std::function<void(double)>& progress) {
  TextScores scores;
  Readers readers;
  readers.model = std::make_unique<Reader>(model, longest(samples, model));
  int step = readers.model->rows_at_once();
  const auto also = [&](Runtime* runtime, std::unique_ptr<Reader>& reader,
                        std::optional<TextScore>& score) {
    if (runtime == nullptr) return;
    reader = std::make_unique<Reader>(*runtime, longest(samples, *runtime));
    step = std::min(step, reader->rows_at_once());
    score.emplace();
  };
  also(base, readers.base, scores.base);
  also(other, readers.other, scores.other);
  size_t done = 0;
  for (const TextSample& sample : samples) {
    const int end = sample.counted.empty() ? 0 : sample.counted.back();
    for (int first = 0; first < end; first += step) {
      readers.score(sample, first, std::min(end, first + step), scores);
    }
    if (progress) progress(double(++done) / double(samples.size()));
  }
  return scores;
}

}  // namespace nibble
