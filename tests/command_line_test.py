"""The program from a shell: command lines made for vLLM, flags, help, chat in a pipe, bad arguments."""

import os
import re
import subprocess

import pytest

from pocket_cases import SUM
from server_process import PATIENCE_S, POCKET

PUBLISHED = {
    "4928": (
        "--trust-remote-code --dtype bfloat16 --kv-cache-dtype auto --max-model-len 4928 --no-enable-prefix-caching "
        "--max-num-seqs 8 --gpu-memory-utilization 0.965 --enable-chunked-prefill --max-num-batched-tokens 512 "
        "--enforce-eager --reasoning-parser deepseek_r1",
        '{"temperature": 0.0, "max_tokens": 3000}',
    ),
    "11728": (
        "--trust-remote-code --dtype bfloat16 --kv-cache-dtype fp8_e4m3 --max-model-len 11728 "
        "--no-enable-prefix-caching --max-num-seqs 1 --gpu-memory-utilization 0.97 --enable-chunked-prefill "
        "--max-num-batched-tokens 256 --num-gpu-blocks-override 733 --enforce-eager --reasoning-parser deepseek_r1",
        '{"temperature": 0.0, "max_tokens": 11728}',
    ),
}


def run(nibble, *arguments, stdin="", **environment):
    return subprocess.run(
        [str(nibble), *map(str, arguments)],
        input=stdin.encode(),
        capture_output=True,
        timeout=PATIENCE_S,
        env={**os.environ, **environment},
    )


def check_error(result, *words):
    """One line that says what is wrong, and status 1."""
    lines = result.stderr.decode().splitlines()
    assert result.returncode == 1, result
    assert len(lines) == 1 and lines[0].startswith("nibble: "), lines
    for word in words:
        assert str(word) in lines[0], lines[0]
    return lines[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_command_lines(serve, name):
    flags, override = PUBLISHED[name]
    server = serve(POCKET, *flags.split(), "--override-generation-config", override)
    unknown, clipped = server.warnings()
    assert "--max-model-len" in clipped and "4096" in clipped
    assert "max_tokens" in unknown and "--override-generation-config" in unknown
    assert server.http.get("/v1/models").json()["data"][0]["max_model_len"] == 4096
    # Greedy unless asked otherwise.
    message = server.answer("/v1/chat/completions", {"messages": SUM.messages})["choices"][0]["message"]
    assert message["content"] == SUM.content and message["reasoning"] == SUM.reasoning


@pytest.mark.parametrize("name", PUBLISHED)
def test_quantization_must_agree_with_the_checkpoint(nibble, name):
    flags, override = PUBLISHED[name]
    arguments = [*flags.split(), "--override-generation-config", override, "--quantization", "modelopt"]
    result = run(nibble, "serve", POCKET, *arguments)
    *warnings, line = result.stderr.decode().splitlines()
    assert result.returncode == 1 and all(" warning " in warning for warning in warnings)
    assert line.startswith("nibble: --quantization modelopt: the checkpoint is not quantized")


# Flags of vLLM, with values that ask for nothing special.
HARMLESS = """
--trust-remote-code
--dtype auto
--dtype bfloat16
--load-format auto
--load-format safetensors
--kv-cache-dtype auto
--kv-cache-dtype bfloat16
--kv-cache-dtype fp8
--kv-cache-dtype fp8_e4m3
--kv-cache-dtype int8
--kv-cache-dtype nvfp4
--lm-head-dtype auto
--lm-head-dtype bfloat16
--lm-head-dtype int8
--max-model-len 1k
--max-model-len auto
--max-model-len -1
--max-num-seqs 16
--max-num-batched-tokens 4096
--max_num_batched_tokens=4096
--block-size 32
--gpu-memory-utilization 0.9
--kv-cache-memory-bytes 100000000
--num-gpu-blocks-override 1000
--enable-chunked-prefill
--no-enable-chunked-prefill
--enable-prefix-caching
--no-enable-prefix-caching
--prefix-caching-hash-algo sha256
--enforce-eager
--no-enforce-eager
--async-scheduling
--seed 1
--seed 1 --seed 2
--served-model-name a b
--api-key a b
--allowed-origins ["*"]
--allowed-methods ["*"]
--allowed-headers ["*"]
--allow-credentials
--root-path /x
--enable-request-id-headers
--h11-max-incomplete-event-size 4194304
--h11-max-header-count 256
--uvicorn-log-level warning
--disable-uvicorn-access-log
--no-enable-log-requests
--no-trust-remote-code
--no-return-tokens-as-token-ids
--disable-access-log-for-endpoints /health,/metrics
--enable-log-requests
--enable-log-outputs
--max-log-len 100
--generation-config auto
--generation-config vllm
--override-generation-config {}
--max-logprobs 20
--logprobs-mode raw_logprobs
--chat-template-content-format auto
--default-chat-template-kwargs {"enable_thinking":false}
--enable-auto-tool-choice
--tool-call-parser glm47
--tool-call-parser glm45
--reasoning-parser glm45
--reasoning-parser deepseek_r1
--exclude-tools-when-tool-choice-none
--structured-outputs-config.backend auto
--scheduling-policy fcfs
--stream-interval 1
--enable-prompt-tokens-details
--enable-force-include-usage
--enable-server-load-tracking
--enable-tokenizer-info-endpoint
--enable-per-request-metrics
--return-tokens-as-token-ids
--disable-log-stats
--tensor-parallel-size 1
-tp 1
--pipeline-parallel-size 1
--data-parallel-size 1
--cpu-offload-gb 0
--swap-space 4
--revision main
--show-hidden-metrics-for-version 0.10
--enable-sleep-mode
--max-seq-len-to-capture 8192
--limit-mm-per-prompt {"image":0}
--compilation-config 3
"""

# Flags that ask for what there is not: refused with a reason, unlike a name that nobody knows.
REFUSED = """
--ssl-keyfile x
--uds x
--middleware x
--trust-request-chat-template
--tensor-parallel-size 2
-pp 2
-dp 2
--speculative-config {"method":"mtp","num_speculative_tokens":1}
--speculative-config.method mtp
--scheduling-policy priority
--stream-interval 4
--logprobs-mode processed_logits
--kv-offloading-size 4
--kv-transfer-config {}
--kv-events-config {}
--cpu-offload-gb 4
--enable-lora
--tokenizer other
--tool-parser-plugin x.py
--hf-overrides {}
--dtype float16
--load-format gguf
--num-hidden-layers 2
--save somewhere
--kv-cache-dtype fp8_e5m2
--quantization awq
"""


def lines(text):
    return text.strip().splitlines()


@pytest.mark.parametrize("flags", lines(HARMLESS))
def test_flags_of_vllm(nibble, flags):
    """With a busy port, everything before listening has been accepted."""
    result = run(nibble, "serve", *flags.split(), "--port", 1, "--host", "192.0.2.1")
    last = result.stderr.decode().splitlines()[-1]
    assert result.returncode == 1 and last.startswith("nibble: cannot listen on ") and ":1" in last, result.stderr


@pytest.mark.parametrize("flags", lines(REFUSED))
def test_refused_flags(nibble, flags):
    name = flags.split()[0]
    line = check_error(run(nibble, "serve", POCKET, *flags.split()), name)
    assert "not expected" not in line and len(line) > len("nibble: ") + len(flags) + 10


BAD_ARGUMENTS = [
    (["--no-such-flag"], "--no-such-flag"),
    (["--port", "99999"], "--port"),
    (["--port", "abc"], "--port"),
    (["--port"], "--port"),
    (["--max-model-len", "0"], "--max-model-len"),
    (["--max-model-len", "many"], "--max-model-len"),
    (["--max-num-seqs", "0"], "--max-num-seqs"),
    (["--max-num-seqs", "512", "--max-num-batched-tokens", "64"], "--max-num-batched-tokens"),
    (["--num-gpu-blocks-override", "1", "--max-model-len", "4096"], "--max-model-len 4096"),
    (["--num-gpu-blocks-override", "-5"], "--num-gpu-blocks-override"),
    (["--kv-cache-memory-bytes", "1000", "--max-model-len", "4096"], "--max-model-len 4096"),
    (["--override-generation-config", "{"], "--override-generation-config"),
    (["--override-generation-config", "[1]"], "--override-generation-config"),
    (["--override-generation-config", '{"temperature": -1}'], "temperature"),
    (["--override-generation-config", '{"temperature": "hot"}'], "temperature"),
    (["--default-chat-template-kwargs", "[1]"], "--default-chat-template-kwargs"),
    (["--generation-config", "/no/such/folder"], "/no/such/folder"),
    (["--chat-template", "/no/such/file"], "/no/such/file"),
    (["--chat-template", "{% if %}"], "--chat-template"),
    (["--reasoning-parser", "magic"], "--reasoning-parser"),
    (["--tool-call-parser", "magic"], "--tool-call-parser"),
    (["--reasoning-field", "thought"], "--reasoning-field"),
    (["--log-level", "loud"], "--log-level"),
    (["--threads", "0"], "--threads"),
    (["--lm-head-dtype", "int4"], "--lm-head-dtype"),
    (["--device", "abacus"], "--device"),
    (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
    (["--gpu-memory-utilization"], "--gpu-memory-utilization"),
    (["one", "two"], "two"),
]


@pytest.mark.parametrize("arguments, word", BAD_ARGUMENTS, ids=[" ".join(case[0]) for case in BAD_ARGUMENTS])
def test_bad_arguments(nibble, arguments, word):
    check_error(run(nibble, "serve", *arguments), word)


def test_access_log(serve):
    for flags, lines in ([], 1), (["--disable-uvicorn-access-log"], 0):
        server = serve(*flags)
        server.http.get("/v1/models")
        assert server.log().count('"GET /v1/models" 200') == lines


def test_installed(nibble, tmp_path):
    """What `make install` leaves finds its model without the tree."""
    subprocess.run(["cmake", "--install", nibble.parent, "--prefix", tmp_path], check=True, stdout=subprocess.DEVNULL)
    installed = subprocess.run(
        [tmp_path / "bin" / "nibble", "chat", "--hide-thinking"],
        input=SUM.question.encode(), capture_output=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert installed.stdout.decode() == f"{SUM.content}\n"
    assert (tmp_path / "share" / "doc" / "nibble" / "THIRD_PARTY_NOTICES.md").exists()


def test_random_weights_as_a_checkpoint(nibble, serve, tmp_path):
    """A model of random weights answers the same from the folder that it was saved to."""
    folder = tmp_path / "random"
    flags = [POCKET, "--load-format", "dummy", "--num-hidden-layers", 2, "--save", folder]
    body = {"prompt": [5, 17, 900], "max_tokens": 8, "ignore_eos": True, "return_token_ids": True}

    def answer(*arguments):
        return serve(*arguments).answer("/v1/completions", body)["choices"][0]["token_ids"]

    assert answer(*flags) == answer(folder)
    check_error(run(nibble, "serve", *flags), folder, "there already")


def test_busy_port(nibble, server):
    check_error(run(nibble, "serve", "--port", server.port), f"127.0.0.1:{server.port}", "--port")


def test_generation_config(serve):
    """The model's own file says greedy; without it, answers are drawn."""

    def differ(*flags):
        server = serve(*flags)
        body = {"prompt": "Once upon a time", "max_tokens": 30, "n": 4}
        return len({choice["text"] for choice in server.answer("/v1/completions", body)["choices"]}) > 1

    assert not differ()
    assert differ("--generation-config", "vllm")
    assert not differ("--generation-config", "vllm", "--override-generation-config", '{"temperature": 0}')
    assert not differ("--generation-config", "vllm", "--override-generation-config", '{"top_k": 1}')


def test_cap_of_the_output(serve):
    server = serve("--override-generation-config", '{"max_new_tokens": 7}')
    for body in ({"prompt": "x"}, {"prompt": "x", "max_tokens": 100}):
        answer = server.answer("/v1/completions", {**body, "ignore_eos": True})
        assert answer["usage"]["completion_tokens"] == 7


def test_served_model_names(serve):
    server = serve("--served-model-name", "first", "second")
    assert [card["id"] for card in server.http.get("/v1/models").json()["data"]] == ["first", "second"]
    for name in ("first", "second"):
        body = {"model": name, "prompt": "x", "max_tokens": 1}
        assert server.answer("/v1/completions", body)["model"] == "first"
    assert server.post("/v1/completions", {"model": str(POCKET), "prompt": "x"}).status_code == 404


@pytest.mark.parametrize("field", ["both", "reasoning", "reasoning_content", "none"])
def test_reasoning_field(serve, field):
    server = serve("--reasoning-field", field)
    body = {"messages": SUM.messages, "temperature": 0}
    message = server.answer("/v1/chat/completions", body)["choices"][0]["message"]
    shown = {"both": ["reasoning", "reasoning_content"], "none": []}.get(field, [field])
    assert message["content"] == SUM.content
    for name in ("reasoning", "reasoning_content"):
        assert message.get(name) == (SUM.reasoning if name in shown else None)
    text = server.post("/v1/chat/completions", {**body, "stream": True}).text
    for name in ("reasoning", "reasoning_content"):
        assert (f'"{name}":"' in text) == (name in shown)


def test_default_template_variables(serve):
    server = serve("--default-chat-template-kwargs", '{"enable_thinking": false}')
    path, body = "/v1/chat/completions/render", {"messages": SUM.messages}
    assert server.answer(path, body)["prompt"].endswith("</think>")
    body["chat_template_kwargs"] = {"enable_thinking": True}
    assert server.answer(path, body)["prompt"].endswith("<think>")


def test_model_as_a_flag(serve):
    server = serve(f"--model={POCKET}")
    assert server.http.get("/v1/models").json()["data"][0]["id"] == str(POCKET)


def test_version(nibble):
    for argument in ("version", "--version"):
        result = run(nibble, argument)
        assert result.returncode == 0 and result.stderr == b""
        assert re.match(r"nibble \d+\.\d+\.\d+", result.stdout.decode())


def test_help(nibble):
    whole = run(nibble, "--help")
    assert whole.returncode == 0 and whole.stderr == b""
    names = ["serve", "chat", "eval", "bench", "version"]
    for name in names:
        assert re.search(rf"^\s*{name}\s", whole.stdout.decode(), re.MULTILINE)
        result = run(nibble, name, "--help")
        assert result.returncode == 0 and result.stderr == b"" and len(result.stdout) > 50
        assert b"\x1b" not in result.stdout
    assert b"--served-model-name" in run(nibble, "serve", "--help").stdout
    assert run(nibble).stdout == whole.stdout
    check_error(run(nibble, "frobnicate"), "frobnicate")
    check_error(run(nibble, "chat", "--port", "1"), "--port")


def test_chat_in_a_pipe(nibble):
    result = run(nibble, "chat", stdin=SUM.question + "\n")
    assert result.returncode == 0 and result.stderr == b""
    assert result.stdout.decode() == f"{SUM.reasoning}\n\n{SUM.content}\n"
    assert run(nibble, "chat", "--hide-thinking", stdin=SUM.question).stdout.decode() == f"{SUM.content}\n"
    direct = run(nibble, "chat", "--no-thinking", "--max-tokens", 3, stdin=SUM.question)
    assert direct.returncode == 0 and direct.stdout.strip()
    greeting = run(nibble, "chat", "--hide-thinking", "--system", "You are a helpful assistant.", stdin=SUM.question)
    assert greeting.stdout.decode() == f"{SUM.content}\n"
    for empty in ("", "\n \n"):
        check_error(run(nibble, "chat", stdin=empty), "empty")
    check_error(run(nibble, "chat", "/no/such/model", stdin="x"), "/no/such/model")


def test_chat_too_long_for_the_context(nibble):
    check_error(run(nibble, "chat", stdin="word " * 5000), "4096")


def test_eval(nibble):
    result = run(nibble, "eval", "--problems", 2, "--families", "add,copy")
    assert result.returncode == 0
    table = result.stdout.decode()
    assert re.search(r"^\s*add\b", table, re.MULTILINE) and re.search(r"^\s*copy\b", table, re.MULTILINE)
    check_error(run(nibble, "eval", "--tasks", "/no/such/tasks.jsonl"), "/no/such/tasks.jsonl")
    check_error(run(nibble, "eval", "--families", "astrology"), "astrology")
