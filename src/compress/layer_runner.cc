#include "compress/layer_runner.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace nibble {
namespace {

constexpr Site kSites[] = {Site::kQkvA,   Site::kQB,   Site::kKvB,           Site::kO,
                           Site::kGateUp, Site::kDown, Site::kExpertsGateUp, Site::kExpertsDown};

KvLayer cache_shape(const GlmConfig& c) {
  return {.format = KvFormat::kF32,
          .page_size = CalibrationTokens::kPageSize,
          .width = c.mla().record_dim(),
          .latent = c.kv_rank};
}

// A copy whose weights live on the backend.
GlmLayer upload_layer(const GlmLayer& host, Backend& backend) {
  GlmLayer layer = host;
  for (Weight* w : {&layer.attention_norm, &layer.qkv_a, &layer.q_norm, &layer.q_b, &layer.kv_norm,
                    &layer.kv_b, &layer.o, &layer.feed_forward_norm, &layer.router,
                    &layer.router_bias, &layer.experts_gate_up, &layer.experts_down,
                    &layer.feed_forward.gate_up, &layer.feed_forward.down}) {
    if (!w->empty()) *w = backend.upload(*w);
  }
  return layer;
}

}  // namespace

LayerRunner::LayerRunner(const GlmConfig& config, const GlmWeights& weights, Backend& backend,
                         const CalibrationTokens& tokens, const std::filesystem::path& spill)
    : config_(config), host_(weights), backend_(backend), tokens_(tokens), weights_(weights) {
  model_ = std::make_unique<GlmFlash>(config_, weights_, backend_, tokens_.max_rows(), 0);
  for (auto& stream : streams_) {
    stream = std::make_unique<ResidualStream>(tokens_.num_tokens(), config_.hidden, spill);
  }
  x_ = backend_.allocate(size_t(tokens_.max_rows()) * size_t(config_.hidden) * sizeof(float));
  cache_ = backend_.allocate(size_t(tokens_.max_pages() * kv_page_bytes(cache_shape(config_))));
}

LayerRunner::~LayerRunner() {
  backend_.free(x_);
  backend_.free(cache_);
}

ResidualStream& LayerRunner::stream(Version version) const {
  return *streams_[size_t(version)];
}

void LayerRunner::embed(const Weight* quantized) {
  std::vector<float> rows;
  for (const Slab& slab : tokens_.slabs()) {
    const int64_t count = slab.batch.rows(), hidden = config_.hidden;
    rows.resize(size_t(count * hidden));
    for (const Version version : {Version::kOriginal, Version::kQuantized}) {
      const Weight& table =
          version == Version::kQuantized && quantized != nullptr ? *quantized : host_.embedding;
      for (int64_t r = 0; r < count; ++r) {
        decode_row(table, slab.batch.tokens[size_t(r)], rows.data() + r * hidden);
      }
      stream(version).write(slab.first_row, count, rows.data());
    }
  }
}

void LayerRunner::free_layer() {
  layers_[0] = layers_[1] = GlmLayer();
  if (layer_ >= 0) weights_.layers[size_t(layer_)] = GlmLayer();
  layer_ = -1;
}

void LayerRunner::begin_head() {
  free_layer();
  weights_.final_norm = backend_.upload(host_.final_norm);
  weights_.lm_head = backend_.upload(host_.lm_head);
  head_ = std::make_unique<GlmFlash>(config_, weights_, backend_, kHeadRows, kHeadRows);
}

void LayerRunner::run_head(const Slab& slab, const std::vector<int>& rows,
                           const LogitsObserver& observer) {
  const int64_t hidden = config_.hidden, last = int64_t(rows.size());
  std::vector<float> values(size_t(kHeadRows * hidden)), logits;
  for (int64_t first = 0; first < last; first += kHeadRows) {
    const int64_t count = std::min<int64_t>(kHeadRows, last - first);
    Batch batch{.segments = {{.num_rows = int(count)}}};
    for (int64_t r = 0; r < count; ++r) {
      const int row = rows[size_t(first + r)];
      stream(Version::kOriginal).read(slab.first_row + row, 1, values.data() + r * hidden);
      batch.tokens.push_back(slab.batch.tokens[size_t(row)]);
    }
    backend_.write(x_, values.data(), size_t(count * hidden) * sizeof(float));
    const Tensor out = head_->head(batch, {x_, DType::kF32, count, hidden});
    logits.resize(size_t(count * config_.vocab));
    backend_.read(out.data, logits.data(), logits.size() * sizeof(float));
    observer(first, count, logits);
  }
}

void LayerRunner::begin_layer(int layer) {
  head_.reset();
  weights_.lm_head = host_.lm_head;
  free_layer();
  layer_ = layer;
  layers_[0] = upload_layer(host_.layers[size_t(layer)], backend_);
  layers_[1] = layers_[0];
}

void LayerRunner::replace(Site site, const Weight& weight) {
  weight_at(layers_[1], site) = backend_.upload(weight);
}

void LayerRunner::run(Version version, Block block, const Slab& slab, const std::set<Site>& sites,
                      bool advance, const Observer& observer) {
  const GlmLayer& layer = use(version);
  std::set<std::string> names;
  for (const Site site : sites) names.insert(weight_at(layer, site).name);
  backend_.watch(std::move(names), /*stop=*/!advance, [&](const ObservedInputs& inputs) {
    for (const Site site : kSites) {
      if (sites.contains(site) && weight_at(layer, site).name == inputs.weight.name) {
        observer(site, inputs);
      }
    }
  });
  run_block(version, block, slab, advance);
}

void LayerRunner::finish(Version version, Block block, const Slab& slab, Site site,
                         const float* x) {
  backend_.watch({}, /*stop=*/false, {});
  backend_.start_at(weight_at(use(version), site).name, x);
  run_block(version, block, slab, /*advance=*/true);
}

GlmLayer& LayerRunner::use(Version version) {
  return weights_.layers[size_t(layer_)] = layers_[size_t(version)];
}

void LayerRunner::run_block(Version version, Block block, const Slab& slab, bool advance) {
  const int64_t count = slab.batch.rows();
  const Tensor x(x_, DType::kF32, count, config_.hidden);
  const size_t bytes = size_t(count * config_.hidden) * sizeof(float);
  backend_.write(x_, stream(version).rows(slab.first_row, count, rows_), bytes);
  if (block == Block::kAttention) {
    KvLayer cache = cache_shape(config_);
    cache.data = cache_;
    model_->add_attention(layer_, slab.batch, cache, x);
  } else {
    model_->add_feed_forward(layer_, slab.batch, x);
  }
  if (!advance) return;
  float* rows = stream(version).place(slab.first_row, count, rows_);
  backend_.read(x_, rows, bytes);
  stream(version).write(slab.first_row, count, rows);
}

void LayerRunner::restart() {
  for (const Slab& slab : tokens_.slabs()) {
    const int64_t count = slab.batch.rows();
    const float* rows = stream(Version::kOriginal).rows(slab.first_row, count, rows_);
    stream(Version::kQuantized).write(slab.first_row, count, rows);
  }
}

double LayerRunner::stream_error() {
  double change = 0, value = 0;
  for (const Slab& slab : tokens_.slabs()) {
    const int64_t count = slab.batch.rows();
    const float* original = stream(Version::kOriginal).rows(slab.first_row, count, rows_);
    const float* quantized = stream(Version::kQuantized).rows(slab.first_row, count, more_rows_);
    for (int64_t i = 0; i < count * config_.hidden; ++i) {
      const double d = double(quantized[i]) - original[i];
      change += d * d;
      value += double(original[i]) * original[i];
    }
  }
  return value > 0 ? std::sqrt(change / value) : 0;
}

void LayerRunner::read_stream(Version version, const Slab& slab, float* out) const {
  stream(version).read(slab.first_row, slab.batch.rows(), out);
}

}  // namespace nibble
