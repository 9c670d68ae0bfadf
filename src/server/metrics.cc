#include "engine/metrics.h"

#include <charconv>
#include <initializer_list>
#include <string>
#include <string_view>

#include "server/endpoints.h"
#include "server/http_counts.h"

namespace nibble {
namespace {

// Prometheus' text format.
class MetricsText {
 public:
  explicit MetricsText(std::string_view model_name)
      : labels_("engine=\"0\",model_name=\"" + escape(model_name) + "\"") {}

  void family(std::string_view name, std::string_view type, std::string_view help) {
    text_.append("# HELP ").append(name).append(" ").append(help).append("\n");
    text_.append("# TYPE ").append(name).append(" ").append(type).append("\n");
  }

  // `labels`: besides engine and model name, such as `le="1"`.
  void sample(std::string_view name, double value, std::string_view labels = "") {
    text_.append(name).append("{").append(labels_);
    if (!labels.empty()) text_.append(",").append(labels);
    text_.append("} ").append(number(value)).append("\n");
  }

  // One value under several names: those that vLLM had before are still read by some.
  void gauge(std::initializer_list<std::string_view> names, double value, std::string_view help) {
    for (const std::string_view name : names) {
      family(name, "gauge", help);
      sample(name, value);
    }
  }

  void counter(std::initializer_list<std::string_view> names, double value, std::string_view help) {
    for (const std::string_view name : names) {
      family(name, "counter", help);
      sample(name, value);
    }
  }

  void histogram(const std::string& name, const Histogram& histogram, std::string_view help) {
    family(name, "histogram", help);
    int64_t count = 0;
    for (size_t i = 0; i <= histogram.bounds().size(); ++i) {
      count += histogram.count(i);
      const bool last = i == histogram.bounds().size();
      const std::string bound = last ? "+Inf" : number(histogram.bounds()[i]);
      sample(name + "_bucket", double(count), "le=\"" + bound + "\"");
    }
    sample(name + "_sum", histogram.sum());
    sample(name + "_count", double(count));
  }

  void raw(const std::string& line) { text_ += line; }
  std::string take() { return std::move(text_); }

  static std::string escape(std::string_view value) {
    std::string result;
    for (const char c : value) {
      if (c == '\\' || c == '"') result += '\\';
      result += c == '\n' ? "\\n" : std::string(1, c);
    }
    return result;
  }

  static std::string number(double value) {
    char digits[32];
    const auto [end, error] = std::to_chars(digits, digits + sizeof(digits), value);
    return {digits, end};
  }

 private:
  std::string labels_;
  std::string text_;
};

double load(const std::atomic<int64_t>& value) {
  return double(value.load(std::memory_order_relaxed));
}

void write_gauges(const EngineMetrics& m, MetricsText& text) {
  const double pages = load(m.num_pages);
  text.gauge({"vllm:num_requests_running"}, load(m.num_requests_running), "Requests in the batch.");
  text.gauge({"vllm:num_requests_waiting"}, load(m.num_requests_waiting),
             "Requests waiting for the batch.");
  text.gauge({"vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"},
             pages > 0 ? load(m.num_pages_used) / pages : 0, "Used share of the cache; 1 is all.");
}

void write_cache_config(const Service& service, MetricsText& text) {
  const EngineOptions& engine = service.engine_options;
  text.family("vllm:cache_config_info", "gauge", "The cache's configuration.");
  text.sample("vllm:cache_config_info", 1,
              "block_size=\"" + std::to_string(engine.page_size) + "\",cache_dtype=\"" +
                  MetricsText::escape(service.options.cache_dtype) + "\",enable_prefix_caching=\"" +
                  (engine.prefix_caching ? "True" : "False") + "\",gpu_memory_utilization=\"" +
                  MetricsText::number(service.options.gpu_memory_utilization) +
                  "\",num_gpu_blocks=\"" + std::to_string(engine.num_pages) + "\"");
}

void write_counters(const EngineMetrics& m, MetricsText& text) {
  text.counter({"vllm:prompt_tokens_total"}, load(m.prompt_tokens), "Prompt tokens processed.");
  text.counter({"vllm:generation_tokens_total"}, load(m.generation_tokens), "Tokens generated.");
  text.counter({"vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"},
               load(m.prefix_cache_queries), "Prompt tokens looked up in the prefix cache.");
  text.counter({"vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"},
               load(m.prefix_cache_hits), "Prompt tokens found in the prefix cache.");
  text.counter({"vllm:num_preemptions_total"}, load(m.num_preemptions),
               "Requests that lost their pages to others.");
  text.family("vllm:request_success_total", "counter", "Finished requests.");
  constexpr std::string_view kReasons[] = {"stop", "length", "abort", "error"};
  for (size_t i = 0; i < m.request_success.size(); ++i) {
    text.sample("vllm:request_success_total", load(m.request_success[i]),
                "finished_reason=\"" + std::string(kReasons[i]) + "\"");
  }
}

void write_histograms(const EngineMetrics& m, MetricsText& text) {
  text.histogram("vllm:time_to_first_token_seconds", m.time_to_first_token,
                 "From arrival to the first token.");
  text.histogram("vllm:inter_token_latency_seconds", m.inter_token_latency,
                 "From one token to the next.");
  text.histogram("vllm:request_time_per_output_token_seconds", m.request_time_per_output_token,
                 "Mean time a token, of each request.");
  text.histogram("vllm:e2e_request_latency_seconds", m.e2e_request_latency,
                 "From arrival to the end.");
  text.histogram("vllm:request_queue_time_seconds", m.request_queue_time,
                 "From arrival to the batch.");
  text.histogram("vllm:request_inference_time_seconds", m.request_inference_time,
                 "From the batch to the end.");
  text.histogram("vllm:request_prefill_time_seconds", m.request_prefill_time,
                 "From the batch to the first token.");
  text.histogram("vllm:request_decode_time_seconds", m.request_decode_time,
                 "From the first token to the end.");
  text.histogram("vllm:iteration_tokens_total", m.iteration_tokens, "Tokens of each step.");
  text.histogram("vllm:request_prompt_tokens", m.request_prompt_tokens,
                 "Prompt tokens of each request.");
  text.histogram("vllm:request_generation_tokens", m.request_generation_tokens,
                 "Generated tokens of each request.");
  text.histogram("vllm:request_params_max_tokens", m.request_params_max_tokens,
                 "max_tokens of each request.");
}

void write_http_counts(const HttpCounts& counts, MetricsText& text) {
  text.family("http_requests_total", "counter", "Answered HTTP requests.");
  for (const auto& [key, count] : counts.all()) {
    const auto& [path, method, status] = key;
    text.raw("http_requests_total{handler=\"" + path + "\",method=\"" + method + "\",status=\"" +
             std::to_string(status / 100) + "xx\",code=\"" + std::to_string(status) + "\"} " +
             std::to_string(count) + "\n");
  }
}

}  // namespace

Answer metrics(const Service& service, const HttpRequest&) {
  MetricsText text(service.model_name());
  write_gauges(service.engine_metrics, text);
  write_cache_config(service, text);
  write_counters(service.engine_metrics, text);
  write_histograms(service.engine_metrics, text);
  write_http_counts(service.http_counts, text);
  return HttpResponse{.content_type = "text/plain; version=0.0.4; charset=utf-8",
                      .body = text.take()};
}

}  // namespace nibble
