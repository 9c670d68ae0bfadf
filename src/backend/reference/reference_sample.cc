// The draw, spelled out: sort everything, then apply the stages of backend.h one after another.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "backend/reference/reference_backend.h"

namespace nibble {
namespace {

// Ids by falling value, rising id among equals.
std::vector<int32_t> falling_order(const std::vector<double>& values) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return values[size_t(a)] > values[size_t(b)]; });
  return order;
}

void apply_edits(const SampleBatch& batch, const SampleRow& row, std::vector<double>& logits) {
  for (int i = 0; i < row.num_edits; ++i) {
    const LogitEdit& edit = batch.edits[size_t(row.first_edit + i)];
    double& logit = logits[size_t(edit.token)];
    logit = (logit > 0 ? logit / edit.repetition : logit * edit.repetition) + edit.offset;
  }
}

int32_t draw(const SampleRow& row, std::vector<double> logits) {
  const std::vector<int32_t> order = falling_order(logits);
  if (row.temperature == 0) return order[0];

  const double best = logits[size_t(order[0])];
  std::vector<double> p;  // in falling order, unnormalised
  for (const int32_t id : order) {
    const double weight = std::exp((logits[size_t(id)] - best) / row.temperature);
    if (weight < row.min_p) break;
    if (row.top_k > 0 && int(p.size()) == row.top_k) break;
    p.push_back(weight);
  }
  double total = std::accumulate(p.begin(), p.end(), 0.0);
  double sum = 0;
  size_t kept = 0;
  while (kept < p.size() && (kept == 0 || sum < row.top_p * total)) sum += p[kept++];
  total = sum;
  sum = 0;
  for (size_t i = 0; i < kept; ++i) {
    sum += p[i];
    if (sum > row.uniform * total) return order[i];
  }
  return order[kept - 1];
}

}  // namespace

void ReferenceBackend::sample(Tensor logits, const SampleBatch& batch, SampleResult out) {
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    const SampleRow& row = batch.rows[r];
    const float* raw = logits.row<float>(int64_t(r));
    std::vector<double> values(raw, raw + logits.cols);

    const std::vector<double> before_edits = values;
    apply_edits(batch, row, values);
    const int32_t token = row.target >= 0 ? row.target : draw(row, values);
    *out.tokens.row<int32_t>(int64_t(r)) = token;

    if (row.num_logprobs < 0) continue;
    const std::vector<int32_t> order = falling_order(before_edits);
    const double best = before_edits[size_t(order[0])];
    double sum = 0;
    for (const double v : before_edits) sum += std::exp(v - best);
    const double log_sum = best + std::log(sum);
    float* logprobs = out.logprobs.row<float>(int64_t(r));
    logprobs[0] = float(before_edits[size_t(token)] - log_sum);
    for (int k = 0; k < row.num_logprobs; ++k) {
      logprobs[k + 1] = float(before_edits[size_t(order[size_t(k)])] - log_sum);
      out.top_ids.row<int32_t>(int64_t(r))[k] = order[size_t(k)];
    }
  }
}

}  // namespace nibble
