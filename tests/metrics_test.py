"""Prometheus metrics under vLLM's names, with its arithmetic."""

import re

import pytest

from pocket_cases import SUM
from raw_http import RawConnection, post
from server_process import wait_until

PROMPT = SUM.prompt_ids
TOKENS = 10
REQUESTS = 10
COMPLETIONS = "/v1/completions"
BODY = {"prompt": PROMPT, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
GAUGES = ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"]
COUNTERS = [
    "prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "num_preemptions",
    "request_success",
]  # fmt: skip
HISTOGRAMS = [
    "time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds", "request_queue_time_seconds", "request_inference_time_seconds",
    "request_prefill_time_seconds", "request_decode_time_seconds", "iteration_tokens_total",
    "request_prompt_tokens", "request_generation_tokens", "request_params_max_tokens",
]  # fmt: skip


class Difference:
    """What the metrics gained while requests ran, once the server is idle again."""

    def __init__(self, server):
        self.server = server

    def __enter__(self):
        wait_until(self.server.is_idle)
        self.before = self.server.metrics()
        return self

    def __exit__(self, *_):
        wait_until(self.server.is_idle)
        self.after = self.server.metrics()

    def __getitem__(self, name):
        return self.after["vllm:" + name] - self.before.get("vllm:" + name, 0)

    def finished(self, reason):
        return self[f'request_success_total{{finished_reason="{reason}"}}']


@pytest.fixture(scope="module")
def counted(module_serve):
    return module_serve("--no-enable-prefix-caching")


def test_exposition(counted):
    response = counted.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", response.text, re.MULTILINE))
    samples = [line for line in response.text.splitlines() if not line.startswith("#")]
    for line in samples:
        assert re.fullmatch(r'[a-z_:0-9]+(\{([a-z_]+="[^"]*",?)*\})? (-?[0-9.e+-]+|\+Inf|NaN)', line), line
    for name in GAUGES + ["gpu_cache_usage_perc", "cache_config_info"]:
        assert types["vllm:" + name] == "gauge"
    for name in COUNTERS:
        assert types[f"vllm:{name}_total"] == "counter"
    for name in HISTOGRAMS:
        assert types["vllm:" + name] == "histogram"
    labelled = [line for line in samples if line.startswith("vllm:")]
    assert all('engine="0"' in line and "model_name=" in line for line in labelled)
    config = next(line for line in samples if line.startswith("vllm:cache_config_info"))
    assert 'block_size="16"' in config and 'enable_prefix_caching="False"' in config
    assert int(re.search(r'num_gpu_blocks="(\d+)"', config)[1]) > 256


def test_arithmetic(counted):
    with Difference(counted) as gained:
        for _ in range(REQUESTS):
            counted.answer(COMPLETIONS, BODY)
    prompt_tokens, generated = REQUESTS * len(PROMPT), REQUESTS * TOKENS
    assert gained["prompt_tokens_total"] == prompt_tokens
    assert gained["generation_tokens_total"] == generated
    assert gained.finished("length") == REQUESTS and gained.finished("stop") == 0
    assert gained["inter_token_latency_seconds_count"] == REQUESTS * (TOKENS - 1)
    assert gained["iteration_tokens_total_sum"] == prompt_tokens + generated
    assert gained["iteration_tokens_total_count"] == REQUESTS * TOKENS
    assert gained["request_prompt_tokens_sum"] == prompt_tokens
    assert gained["request_generation_tokens_sum"] == generated
    assert gained["request_params_max_tokens_sum"] == generated
    for name in HISTOGRAMS:
        if name not in ("inter_token_latency_seconds", "iteration_tokens_total"):
            assert gained[name + "_count"] == REQUESTS, name
    assert gained["num_preemptions_total"] == 0
    assert gained["prefix_cache_hits_total"] == 0
    order = [gained[f"{name}_seconds_sum"] for name in ("request_prefill_time", "request_inference_time")]
    assert 0 < order[0] < order[1] <= gained["e2e_request_latency_seconds_sum"]


def test_a_stop_token_counts(counted):
    with Difference(counted) as gained:
        answer = counted.answer(COMPLETIONS, {**BODY, "max_tokens": 100, "ignore_eos": False})
    assert answer["usage"]["completion_tokens"] == SUM.num_generated
    assert gained["generation_tokens_total"] == SUM.num_generated
    assert gained.finished("stop") == 1


def test_a_stop_string_counts_as_the_end(counted):
    with Difference(counted) as gained:
        counted.answer(COMPLETIONS, {**BODY, "max_tokens": 100, "ignore_eos": False, "stop": " carry"})
    assert gained.finished("stop") == 1 and gained.finished("abort") == 0


def test_cached_tokens_count_as_prompt_tokens(server):
    body = {**BODY, "cache_salt": "test_cached_tokens_count_as_prompt_tokens"}
    with Difference(server) as gained:
        server.answer(COMPLETIONS, body)
        server.answer(COMPLETIONS, body)
    assert gained["prompt_tokens_total"] == 2 * len(PROMPT)
    assert gained["prefix_cache_queries_total"] == 2 * len(PROMPT)
    assert gained["prefix_cache_hits_total"] == 16
    assert gained["iteration_tokens_total_sum"] >= 2 * (len(PROMPT) + TOKENS) - 16


def test_choices_are_requests(counted):
    with Difference(counted) as gained:
        counted.answer(COMPLETIONS, {**BODY, "n": 3})
    assert gained.finished("length") == 3 and gained["generation_tokens_total"] == 3 * TOKENS


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("leave", ["close", "reset"])
def test_gauges_while_running_and_after_hanging_up(counted, streamed, leave):
    body = {**BODY, "max_tokens": 4000, "stream": streamed}
    with Difference(counted) as gained:
        connection = RawConnection(counted)
        connection.send(post(COMPLETIONS, body))
        wait_until(lambda: counted.metrics()["vllm:num_requests_running"] == 1)
        assert 0 < counted.metrics()["vllm:kv_cache_usage_perc"] < 1
        connection.reset() if leave == "reset" else connection.socket.close()
        wait_until(counted.is_idle, 2)
    assert gained.finished("abort") == 1 and gained.finished("length") == 0
    assert gained["generation_tokens_total"] < 4000


def test_waiting_requests_can_hang_up(serve):
    server = serve("--max-num-seqs", 1)
    first, second = RawConnection(server), RawConnection(server)
    first.send(post(COMPLETIONS, {**BODY, "max_tokens": 4000}))
    wait_until(lambda: server.metrics()["vllm:num_requests_running"] == 1)
    second.send(post(COMPLETIONS, {**BODY, "max_tokens": 4000}))
    wait_until(lambda: server.metrics()["vllm:num_requests_waiting"] == 1)
    second.reset()
    wait_until(lambda: server.metrics()["vllm:num_requests_waiting"] == 0, 2)
    assert server.metrics()["vllm:num_requests_running"] == 1
    first.reset()
    wait_until(server.is_idle, 2)


def test_http_requests_are_counted(counted):
    name = 'http_requests_total{handler="/v1/completions",method="POST",status="4xx",code="400"}'
    before = counted.metrics().get(name, 0)
    counted.post(COMPLETIONS, {})
    assert counted.metrics()[name] == before + 1
