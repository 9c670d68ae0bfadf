"""Bytes that no good client sends: each gets the right status, and the server goes on serving others."""

import json
import time

import pytest

from pocket_cases import CHATS, SUM
from raw_http import RawConnection, exchange, get, post
from server_process import wait_until

CHAT = "/v1/chat/completions"
ASK = {"messages": SUM.messages, "temperature": 0, "max_tokens": 100}
MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def still_serves(server):
    yield
    assert server.http.get("/health").status_code == 200


def content(body):
    return json.loads(body)["choices"][0]["message"]["content"]


def events(body):
    assert body.endswith(b"data: [DONE]\n\n")
    return [json.loads(line[6:]) for line in body.decode().split("\n\n") if line.startswith("data: {")]


def status_of(server, data, end_input=False):
    status, headers, body = exchange(server, data, end_input)
    if status >= 400:
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["code"] == status
        assert len(body) <= 4096 and headers["content-type"].startswith("application/json")
    return status


def test_body_of_100_megabytes(server):
    """The client sends all of it before it reads, and still finds the answer."""
    response = server.http.post(CHAT, content=b"x" * (100 * MEGABYTE), headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    error = response.json()["error"]
    assert error["code"] == 413 and str(32 * MEGABYTE) in error["message"]


def test_chunked_body_of_100_megabytes(server):
    chunk = b"100000\r\n" + b"x" * MEGABYTE + b"\r\n"
    with RawConnection(server) as connection:
        connection.send(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(100):
            connection.send(chunk)
        assert connection.response()[0] == 413


def test_body_just_within_the_limit(server):
    padding = " " * (31 * MEGABYTE)
    status, _, body = exchange(server, post(CHAT, (json.dumps(ASK) + padding).encode()))
    assert status == 200 and content(body) == SUM.content


DEEP = {
    "arrays": "[" * 10_000 + "]" * 10_000,
    "objects": '{"a":' * 10_000 + "1" + "}" * 10_000,
    "arrays in messages": '{"messages":' + "[" * 10_000 + "]" * 10_000 + "}",
    "unclosed": "[" * 10_000,
    "template variables": '{"messages":[],"chat_template_kwargs":' + '{"a":' * 10_000 + "1" + "}" * 10_001,
    "an unknown field": '{"x":' + "[" * 200 + "]" * 200 + "}",
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_json(server, name):
    response = server.http.post(CHAT, content=DEEP[name].encode())
    assert response.status_code == 400 and "nested" in response.json()["error"]["message"]


def test_deep_json_in_a_string(server):
    calls = [{"function": {"name": "f", "arguments": '{"a":' * 10_000 + "1" + "}" * 10_000}}]
    messages = [{"role": "assistant", "content": "", "tool_calls": calls}]
    response = server.post(CHAT, {"messages": messages})
    assert response.status_code == 400 and "nested" in response.json()["error"]["message"]


def test_many_keys(server):
    body = "{" + ",".join(f'"k{i}":0' for i in range(500_000)) + "}"
    start = time.monotonic()
    assert server.http.post(CHAT, content=body.encode()).status_code == 400
    assert time.monotonic() - start < 20


TEXTS = {
    "invalid": b"\xff\xfe",
    "cut": b"\xe6\x97",
    "overlong": b"\xc0\xaf",
    "surrogate": b"\xed\xa0\x80",
    "too large": b"\xf5\x80\x80\x80",
    "lone surrogate escape": rb"\ud800",
    "half an escape": rb"\u12",
    "raw control character": b"a\x01b",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("place", ["value", "key"])
def test_invalid_utf8(server, name, place):
    text = TEXTS[name]
    if place == "value":
        body = b'{"messages":[{"role":"user","content":"' + text + b'"}]}'
    else:
        body = b'{"' + text + b'":1,"messages":[{"role":"user","content":"Hi!"}]}'
    assert status_of(server, post(CHAT, body)) == 400


def test_duplicate_keys_and_byte_order_mark(server):
    body = b'{"max_tokens":1,"max_tokens":2,"messages":[{"role":"user","content":"Hi!"}]}'
    assert status_of(server, post(CHAT, body)) in (200, 400)
    assert status_of(server, post(CHAT, b"\xef\xbb\xbf" + body)) in (200, 400)


BAD_REQUESTS = {
    "noise": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "no version": (b"GET /health\r\n\r\n", 400),
    "another protocol": (b"GET /health SIP/2.0\r\n\r\n", 400),
    "version 9": (b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n", 400),
    "space in a name": (b"GET /health HTTP/1.1\r\nBad Name: x\r\n\r\n", 400),
    "no colon": (b"GET /health HTTP/1.1\r\nBadName\r\n\r\n", 400),
    "NUL in a value": (b"GET /health HTTP/1.1\r\nX: a\0b\r\n\r\n", 400),
    "broken escape": (b"GET /heal%zzth HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "long head": (b"GET /health HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431),
    "long path": (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    "many fields": (b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 300 + b"\r\n", 431),
    "negative length": (b"POST /tokenize HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
    "length in words": (b"POST /tokenize HTTP/1.1\r\nContent-Length: ten\r\n\r\n", 400),
    "huge length": (b"POST /tokenize HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
    "large length": (b"POST /tokenize HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\n", 413),
    "two lengths": (b"POST /tokenize HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
    "length and chunks": (
        b"POST /tokenize HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "unknown encoding": (b"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "negative chunk": (b"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n", 400),
    "chunk in words": (b"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
    "huge chunk": (b"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400),
    "large chunk": (b"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n", 413),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests(server, name):
    data, expected = BAD_REQUESTS[name]
    with RawConnection(server) as connection:
        connection.send(data)
        status, headers, body = connection.response()
        assert status == expected, body
        assert json.loads(body)["error"]["code"] == status
        assert headers["connection"] == "close", "what follows cannot be told from a request"
        connection.end_input()
        assert connection.is_closed()


def test_chunked_request(server):
    body = json.dumps({"prompt": "Hello"}).encode()
    pieces = b"".join(
        b"%x;name=value\r\n%s\r\n" % (len(body[i : i + 3]), body[i : i + 3]) for i in range(0, len(body), 3)
    )
    head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for trailer in (b"", b"X-Trailer: y\r\n"):
        status, _, answer = exchange(server, head + pieces + b"0\r\n" + trailer + b"\r\n")
        assert status == 200 and json.loads(answer)["count"] > 0


def test_pipelining(server):
    """Requests sent at once are answered in their order."""
    asks = [post(CHAT, {**ASK, "messages": golden.messages}) for golden in CHATS[:3]]
    stream = post(CHAT, {**ASK, "stream": True})
    with RawConnection(server) as connection:
        connection.send(asks[0] + get("/version") + asks[1] + get("/health", method="HEAD") + stream + asks[2])
        assert content(connection.response()[2]) == CHATS[0].content
        assert "version" in json.loads(connection.response()[2])
        assert content(connection.response()[2]) == CHATS[1].content
        assert connection.response(head_only=True)[0] == 200
        streamed = "".join(
            event["choices"][0]["delta"].get("content") or "" for event in events(connection.response()[2])
        )
        assert streamed == SUM.content
        assert content(connection.response()[2]) == CHATS[2].content


def test_http_1_0(server):
    status, headers, _ = exchange(server, get("/version", version="1.0"))
    assert status == 200 and headers["connection"] == "close"
    data = post(CHAT, {**ASK, "stream": True}).replace(b"HTTP/1.1", b"HTTP/1.0")
    status, headers, body = exchange(server, data)
    assert status == 200 and "transfer-encoding" not in headers and events(body)


def test_expect_continue(server):
    body = json.dumps({"prompt": "Hello"}).encode()
    head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    with RawConnection(server) as connection:
        connection.send(head)
        assert connection.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
        connection.send(body)
        assert connection.response()[0] == 200
    refused = head.replace(b"%d" % len(body), b"9999999999")
    with RawConnection(server) as connection:
        connection.send(refused)
        assert connection.response()[0] == 413


def test_keep_alive_ends(server):
    with RawConnection(server) as connection:
        connection.send(get("/version"))
        assert connection.response()[0] == 200
        start = time.monotonic()
        assert connection.is_closed(20)
        assert 3 < time.monotonic() - start < 15


def test_half_closed_after_the_request(server):
    """A client may close its sending half and still listen, as `nc -N` does."""
    status, _, body = exchange(server, post(CHAT, ASK), end_input=True)
    assert status == 200 and content(body) == SUM.content
    assert status_of(server, get("/version"), end_input=True) == 200


def test_half_closed_within_the_request(server):
    whole = post(CHAT, ASK)
    for cut in (10, whole.index(b"\r\n\r\n") + 2, len(whole) - 1):
        assert status_of(server, whole[:cut], end_input=True) == 400
    with RawConnection(server) as connection:
        connection.end_input()
        assert connection.is_closed()


def test_half_closed_within_a_stream(server):
    """Then nobody is listening any more."""
    with RawConnection(server) as connection:
        connection.send(
            post("/v1/completions", {"prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": True})
        )
        connection.read_until(b"data: ")
        connection.end_input()
        wait_until(server.is_idle, 2)


def test_slow_clients(server):
    """Slow-loris: clients that never finish their request are told so, while others are served."""
    starts = {
        "head": b"GET /health HTTP/1.1\r\nX: ",
        "body": b"POST /tokenize HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{",
        "chunk": b"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    }
    connections = {name: [RawConnection(server).send(data) for _ in range(50)] for name, data in starts.items()}
    trickling = RawConnection(server).send(starts["head"])
    silent = [RawConnection(server) for _ in range(50)]
    start = time.monotonic()
    while time.monotonic() - start < 8:
        trickling.send(b"y")
        assert content(json.dumps(server.answer(CHAT, ASK))) == SUM.content
        time.sleep(0.2)
    for connection in [one for group in connections.values() for one in group] + [trickling]:
        assert connection.response()[0] == 408
        connection.socket.close()
    assert time.monotonic() - start < 25
    for connection in silent:
        assert connection.is_closed(15)
        connection.socket.close()


def test_a_reader_that_does_not_read(server):
    """Its stream is bounded and does not hold up others."""
    body = {
        "prompt": "x",
        "max_tokens": 4000,
        "n": 8,
        "ignore_eos": True,
        "stream": True,
        "logprobs": 20,
        "temperature": 0,
    }
    with RawConnection(server) as connection:
        connection.send(post("/v1/completions", body))
        connection.read_until(b"data: ")
        assert content(json.dumps(server.answer(CHAT, ASK))) == SUM.content
    wait_until(server.is_idle, 5)


def test_many_connections(server):
    before = server.open_files()
    connections = [RawConnection(server) for _ in range(400)]
    for connection in connections:
        connection.send(get("/version"))
    assert all(connection.response()[0] == 200 for connection in connections)
    for connection in connections:
        connection.socket.close()
    wait_until(lambda: server.open_files() <= before + 5)
