#include "apps/flags.h"

namespace nibble {
namespace {

void add_memory_flags(CLI::Option_group& group, ModelOptions& o) {
  group.add_option("--block-size", o.block_size, "tokens of a page of the cache")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024))
      ->type_name("N");
  group
      .add_option("--num-gpu-blocks-override", o.num_gpu_blocks_override,
                  "pages of the cache (default: by memory)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 31))
      ->type_name("N");
  group
      .add_option("--kv-cache-memory-bytes", o.kv_cache_memory_bytes,
                  "memory of the cache (default: what a card has left; on a CPU up to 4 GiB)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 50))
      ->type_name("BYTES");
  group
      .add_option("--gpu-memory-utilization", o.gpu_memory_utilization,
                  "share of a card's memory to take in all")
      ->capture_default_str()
      ->check(CLI::Range(0.01, 1.0))
      ->type_name("SHARE");
  group
      .add_option("--gpu-memory-limit", o.gpu_memory_limit,
                  "take no more of a card in all than this, such as 16303MiB or 15.5GiB")
      ->type_name("SIZE");
  group.add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", o.prefix_caching,
                 "keep and share the cache of common beginnings (default: on)");
}

// `runs`: the subcommand runs the one model that the flags name.
void add_weight_flags(CLI::Option_group& group, ModelOptions& o, bool runs) {
  group
      .add_option("--load-format", o.load_format,
                  "auto or safetensors; dummy: random NVFP4 weights in the model's shapes, for "
                  "glm-4.7-flash and glm-4.7-flash-reap-23b without any files")
      ->capture_default_str()
      ->type_name("NAME");
  group
      .add_option("--num-hidden-layers", o.num_hidden_layers,
                  "with --load-format dummy: the first N layers only")
      ->check(CLI::Range(1, 1000))
      ->type_name("N");
  if (runs) {
    group
        .add_option("--save", o.save,
                    "with --load-format dummy: write the model to this new folder, a checkpoint "
                    "like any other")
        ->type_name("DIR");
  }
}

void add_model_flags(CLI::App& app, ModelOptions& o, bool runs) {
  app.add_option("model", o.model,
                 "folder with config.json, tokenizer.json and *.safetensors (default: the pocket "
                 "model that comes with nibble)")
      ->type_name("MODEL");
  auto* group = app.add_option_group("model and machine");
  group
      ->add_option("--device", o.device,
                   "auto: a GPU if there is one; cpu, cuda, cuda:N; reference (for tests)")
      ->capture_default_str()
      ->type_name("NAME");
  group->add_option("--threads", o.threads, "CPU threads (default: physical cores)")
      ->check(CLI::Range(1, 1024))
      ->type_name("N");
  add_weight_flags(*group, o, runs);
  group
      ->add_option("--dtype", o.dtype,
                   "auto or bfloat16; float32: products, activations and cache in FP32 (slow, for "
                   "measuring)")
      ->type_name("NAME");
  group
      ->add_option("--quantization,-q", o.quantization,
                   "must agree with the checkpoint, which decides")
      ->type_name("NAME");
  group
      ->add_option("--kv-cache-dtype", o.kv_cache_dtype,
                   "auto: the checkpoint's; bfloat16, fp8, int8, nvfp4")
      ->capture_default_str()
      ->type_name("NAME");
  group
      ->add_option("--lm-head-dtype", o.lm_head_dtype,
                   "of a BF16 head's logits: int8, with those that can be the largest computed "
                   "again in bfloat16 (auto: so), or bfloat16; other heads stay as stored")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "bfloat16", "int8"}))
      ->type_name("NAME");
  group
      ->add_option("--max-model-len", o.max_model_len,
                   "tokens of prompt and answer together, such as 4096, 16k, auto (default: the "
                   "model's)")
      ->type_name("N");
  group->add_option("--max-num-seqs", o.max_num_seqs, "requests that are computed at once")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536))
      ->type_name("N");
  group
      ->add_option("--max-num-batched-tokens", o.max_num_batched_tokens,
                   "tokens of one step (default: 2048; 8192 on a card with 24 GiB or more)")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N");
  add_memory_flags(*group, o);
  group->add_option("--max-logprobs", o.max_logprobs, "most top_logprobs a request may ask for")
      ->capture_default_str()
      ->check(CLI::Range(0, 1000))
      ->type_name("N");
  group->add_option("--seed", o.seed, "of requests that bring none")
      ->capture_default_str()
      ->type_name("N");
}

}  // namespace

void add_serve_flags(CLI::App& app, ServeOptions& o) {
  add_model_flags(app, o.model, /*runs=*/true);
  auto* group = app.add_option_group("server");
  group->add_option("--host", o.host, "address to listen on; 0.0.0.0 opens it to the network")
      ->capture_default_str()
      ->type_name("ADDRESS");
  group->add_option("--port", o.port, "port to listen on")
      ->capture_default_str()
      ->check(CLI::Range(0, 65535))
      ->type_name("N");
  group
      ->add_option("--served-model-name", o.served_model_names,
                   "names that requests may use; answers carry the first (default: MODEL)")
      ->type_name("NAME...");
  group->add_option("--api-key", o.api_keys, "keys that requests must bring; also VLLM_API_KEY")
      ->type_name("KEY...");
  group
      ->add_option("--allowed-origins", o.allowed_origins,
                   "origins of web pages that may call the server, a JSON list or *")
      ->type_name("LIST");
  group->add_option("--log-level", o.log_level, "debug, info, warning or error")
      ->capture_default_str()
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->type_name("NAME");
  group->add_flag("--disable-uvicorn-access-log", o.no_access_log,
                  "do not log a line for each request");

  group = app.add_option_group("answers");
  group
      ->add_option("--generation-config", o.generation_config,
                   "auto: sampling defaults from the model's generation_config.json; vllm: none; "
                   "or a folder")
      ->capture_default_str()
      ->type_name("NAME");
  group
      ->add_option("--override-generation-config", o.override_generation_config,
                   "sampling defaults as JSON: temperature, top_p, top_k, min_p, "
                   "repetition_penalty, max_new_tokens")
      ->type_name("JSON");
  group
      ->add_option("--chat-template", o.chat_template,
                   "a Jinja file, or the template itself (default: the model's)")
      ->type_name("FILE");
  group
      ->add_option("--default-chat-template-kwargs", o.default_chat_template_kwargs,
                   "template variables as JSON, such as '{\"enable_thinking\": false}'")
      ->type_name("JSON");
  group
      ->add_option("--reasoning-parser", o.reasoning_parser,
                   "glm45, glm47 or deepseek_r1: all the same here; none: thoughts stay in the "
                   "content")
      ->type_name("NAME");
  group->add_option("--tool-call-parser", o.tool_call_parser, "glm45 or glm47: the same here")
      ->type_name("NAME");
  group
      ->add_option("--reasoning-field", o.reasoning_field,
                   "what answers call a thought: reasoning, reasoning_content, both or none")
      ->capture_default_str()
      ->check(CLI::IsMember({"both", "reasoning", "reasoning_content", "none"}))
      ->type_name("NAME");
  group->add_flag("--parse-special-tokens-in-messages", o.parse_special_tokens_in_messages,
                  "let text of messages act as special tokens, as vLLM does (off: it cannot)");
  group->add_flag("--return-tokens-as-token-ids,!--no-return-tokens-as-token-ids",
                  o.return_tokens_as_token_ids, "write tokens of logprobs as token_id:N");
}

void add_chat_flags(CLI::App& app, ChatOptions& o) {
  add_model_flags(app, o.model, /*runs=*/true);
  auto* group = app.add_option_group("chat");
  group->add_option("--system", o.system, "system message")->type_name("TEXT");
  group->add_option("--temperature", o.temperature, "0: always the likeliest token")
      ->check(CLI::Range(0.0, 100.0))
      ->type_name("X");
  group->add_option("--top-p", o.top_p, "share of probability to draw from")
      ->check(CLI::Range(0.0, 1.0))
      ->type_name("X");
  group->add_option("--max-tokens", o.max_tokens, "longest answer (default: what fits)")
      ->check(CLI::Range(1, 1 << 26))
      ->type_name("N");
  group->add_flag("--no-thinking", o.no_thinking, "answer without thinking first");
  group->add_flag("--hide-thinking", o.hide_thinking, "think, but do not show it");
}

void add_eval_flags(CLI::App& app, EvalOptions& o) {
  add_model_flags(app, o.model, /*runs=*/false);
  auto* group = app.add_option_group("evaluation");
  group
      ->add_option("--perplexity", o.perplexity,
                   "a text, read in chunks of 512 tokens: how likely it is")
      ->type_name("FILE.txt");
  group
      ->add_option("--chat", o.chat,
                   "conversations as token ids with the spans that count, one JSON object a line")
      ->type_name("FILE.jsonl");
  group
      ->add_option("--base", o.base,
                   "the model that MODEL was made from, its cache not quantized: KL divergence and "
                   "top-1 agreement")
      ->type_name("MODEL");
  group->add_option("--compare", o.compare, "a second model, side by side with differences")
      ->type_name("MODEL");
  group
      ->add_option("--tasks", o.tasks,
                   "problems with answers, one JSON object a line (default, without a text: the "
                   "pocket model's)")
      ->type_name("FILE.jsonl");
  group->add_option("--problems", o.problems, "problems of each family (default: all)")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N");
  group->add_option("--families", o.families, "families to run (default: all)")
      ->delimiter(',')
      ->type_name("NAME,...");
  group->add_option("--json", o.json, "write the results, with a bit for each problem")
      ->type_name("FILE");
}

void add_plan_flags(CLI::App& app, PlanOptions& o) {
  add_model_flags(app, o.model, /*runs=*/false);
  auto* group = app.add_option_group("plan");
  group
      ->add_option("--gpu-memory", o.gpu_memory,
                   "memory of the card, such as 16303MiB (default: of the card that is here)")
      ->type_name("SIZE");
  group
      ->add_option("--memory", o.memory,
                   "with --device cpu: memory that may be taken (default: what is free here)")
      ->type_name("SIZE");
}

void add_bench_flags(CLI::App& app, BenchOptions& o) {
  add_model_flags(app, o.model, /*runs=*/true);
  auto* group = app.add_option_group("bench");
  group
      ->add_option("--contexts", o.contexts,
                   "tokens in the cache before decoding; those that do not fit are left out")
      ->delimiter(',')
      ->capture_default_str()
      ->type_name("N,...");
  group->add_option("--batches", o.batches, "sequences that decode at once")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::Range(1, 65536))
      ->type_name("N,...");
  group->add_option("--prompts", o.prompts, "tokens of prompts to prefill")
      ->delimiter(',')
      ->capture_default_str()
      ->type_name("N,...");
  group->add_flag("--skip-engine", o.skip_engine,
                  "leave out the rows that go through scheduler and engine");
  group->add_option("--repetitions", o.repetitions, "runs of each row; the median counts")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000))
      ->type_name("N");
  group->add_option("--csv", o.csv, "write the table")->type_name("FILE");
}

}  // namespace nibble
