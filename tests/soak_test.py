"""Many clients at once, some of which leave: the others' answers are those given alone, and nothing stays behind."""

import asyncio
import itertools
import json
import signal
import socket
import struct
import time

import pytest

from pocket_cases import tasks
from raw_http import RawConnection, post
from server_process import wait_until

COMPLETIONS = "/v1/completions"
CLIENTS = 64
MAX_TOKENS = 48
PROMPTS = tasks(3)[:CLIENTS]
LEAVE_AFTER = itertools.cycle([0, 1, 3, 10])  # events


def request(prompt, **options):
    return {"prompt": prompt, "temperature": 0, "max_tokens": MAX_TOKENS, **options}


def streamed(prompt):
    return request(prompt, stream=True, stream_options={"include_usage": True})


async def events(reader):
    """The `data:` lines of a chunked answer, as they come."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    rest = b""
    while size := int(await reader.readline(), 16):
        rest += await reader.readexactly(size)
        await reader.readexactly(2)
        *whole, rest = rest.split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: "):
                yield event[6:]


async def read_stream(server, prompt):
    """(text, finish reason, completion tokens) of a streamed answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(post(COMPLETIONS, streamed(prompt)))
    text, reason, tokens, last = "", None, None, None
    async for event in events(reader):
        last = event
        if event == b"[DONE]":
            continue
        chunk = json.loads(event)
        for choice in chunk["choices"]:
            text += choice["text"]
            reason = choice["finish_reason"] or reason
        if chunk.get("usage"):
            tokens = chunk["usage"]["completion_tokens"]
    assert last == b"[DONE]"
    writer.close()
    return text, reason, tokens


async def hang_up(server, prompt, after, reset):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(post(COMPLETIONS, streamed(prompt)))
    await writer.drain()
    if after:
        seen = 0
        async for _ in events(reader):
            seen += 1
            if seen == after:
                break
    if reset:
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


async def storm(server):
    """Every third client hangs up; what the others got, by prompt."""
    stay, leave = [], []
    for i, prompt in enumerate(PROMPTS):
        if i % 3 == 2:
            leave.append(hang_up(server, prompt, next(LEAVE_AFTER), reset=i % 2 == 0))
        else:
            stay.append((prompt, read_stream(server, prompt)))
    answers = await asyncio.gather(*(answer for _, answer in stay), *leave)
    return dict(zip([prompt for prompt, _ in stay], answers))


@pytest.fixture(scope="module")
def alone(server):
    """Every prompt's answer when no other is asked."""
    answers = {}
    for prompt in PROMPTS:
        answer = server.answer(COMPLETIONS, request(prompt))
        choice = answer["choices"][0]
        answers[prompt] = (choice["text"], choice["finish_reason"], answer["usage"]["completion_tokens"])
    return answers


def check_storm(server, alone):
    assert len(alone) == CLIENTS
    files = server.open_files()
    answers = asyncio.run(asyncio.wait_for(storm(server), 400))
    assert len(answers) == CLIENTS - CLIENTS // 3
    for prompt, answer in answers.items():
        assert answer == alone[prompt]
    wait_until(server.is_idle, 10)
    wait_until(lambda: server.open_files() <= files + 5)


def test_hanging_up_among_64_streams(serve, alone):
    server = serve()
    for _ in range(2):  # without and with cached prompts
        check_storm(server, alone)
    metrics = server.metrics()
    assert metrics["vllm:kv_cache_usage_perc"] == 0 and metrics["vllm:num_requests_running"] == 0
    assert metrics['vllm:request_success_total{finished_reason="error"}'] == 0
    assert metrics['vllm:request_success_total{finished_reason="abort"}'] >= CLIENTS // 3, "they left in time"
    assert not server.warnings()


def test_the_same_with_too_few_pages(serve, alone):
    """Requests lose their pages to others and are computed again, to the same answers."""
    server = serve("--max-model-len", 1024, "--num-gpu-blocks-override", 72, "--no-enable-prefix-caching")
    check_storm(server, alone)
    assert server.metrics()["vllm:num_preemptions_total"] > 0


def test_the_same_in_small_steps(serve, alone):
    server = serve("--max-num-seqs", 4, "--max-num-batched-tokens", 32)
    check_storm(server, alone)


def long_stream(server, tokens):
    body = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    connection = RawConnection(server, timeout_s=200)
    connection.send(post(COMPLETIONS, {**body, "stream_options": {"include_usage": True}}))
    return connection


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_signals_drain(serve, number):
    """What is begun is finished, nothing new is taken, and the status is 0."""
    server = serve()
    tokens = 500
    stream, whole, idle = long_stream(server, tokens), RawConnection(server), RawConnection(server)
    whole.send(post(COMPLETIONS, request("Once", max_tokens=200, ignore_eos=True)))
    wait_until(lambda: server.metrics()["vllm:num_requests_running"] == 2)
    server.signal(number)
    assert idle.is_closed()

    def refuses():
        try:
            RawConnection(server, timeout_s=5).socket.close()
        except OSError:
            return True
        return False

    wait_until(refuses, 5)
    status, _, body = stream.response()
    assert status == 200 and body.endswith(b"data: [DONE]\n\n")
    usage = json.loads(body.split(b"\n\n")[-3][6:])["usage"]
    assert usage["completion_tokens"] == tokens
    status, _, body = whole.response()
    assert json.loads(body)["usage"]["completion_tokens"] == 200
    assert server.wait() == 0


def test_a_second_signal_stops_at_once(serve):
    server = serve()
    stream = long_stream(server, 4000)
    stream.read_until(b"data: ")
    start = time.monotonic()
    server.signal()
    time.sleep(0.2)
    assert server.process.poll() is None
    server.signal()
    assert server.wait() == 0 and time.monotonic() - start < 20
    with pytest.raises(ConnectionError):
        stream.read_until(b"[DONE]")
