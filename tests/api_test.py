"""The contract of each endpoint, beyond what the OpenAI package shows."""

import json
import random
import re

import pytest

from pocket_cases import ADDED_TOKENS, ALL_GOLDENS, CHATS, SUM, TOOL_CASES, by_name
from server_process import wait_until

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
POSTS = [CHAT, COMPLETIONS, "/tokenize", "/detokenize", f"{CHAT}/render", f"{COMPLETIONS}/render"]
GETS = ["/v1/models", "/health", "/ping", "/version", "/metrics"]


def check_error(response, status, kind, param=None, code=None):
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    assert len(response.content) <= 4096
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == (kind, param, code or status)
    return error["message"]


def test_health(server):
    for response in (server.http.get("/health"), server.http.get("/ping"), server.http.post("/ping")):
        assert response.status_code == 200 and response.content == b""


def test_version(server):
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", server.http.get("/version").json()["version"])


def test_models(server, model):
    listed = server.http.get("/v1/models").json()
    assert listed["object"] == "list"
    card = listed["data"][0]
    assert card["id"] == model and card["object"] == "model" and card["max_model_len"] == 4096
    assert {"created", "owned_by", "root", "parent", "permission"} <= set(card)
    assert server.http.get(f"/v1/models/{model}").json() == card
    check_error(server.http.get("/v1/models/other"), 404, "NotFoundError", "model")


def test_paths_without_version(server):
    assert server.http.get("/models").json() == server.http.get("/v1/models").json()
    assert server.answer("/completions", {"prompt": "Hi!", "max_tokens": 1})["choices"]


@pytest.mark.parametrize("path", POSTS)
def test_what_a_body_must_be(server, path):
    for body in (b"", b"{", b"{]", b"[1", b'{"a":}', b"{'a':1}", b'{"a":1}x', b"NaN", b'{"temperature":NaN}'):
        message = check_error(server.http.post(path, content=body), 400, "BadRequestError")
        assert "JSON" in message
    for value in ([], [1], "x", 1, None, True):
        message = check_error(server.post(path, value), 400, "BadRequestError")
        assert "object" in message


@pytest.mark.parametrize("path", [path for path in POSTS if "detokenize" not in path])
def test_an_empty_object_lacks_something(server, path):
    param = "messages" if "chat" in path else "prompt"
    assert param in check_error(server.post(path, {}), 400, "BadRequestError", param)


def test_methods(server):
    for path in POSTS:
        response = server.http.get(path)
        check_error(response, 405, "MethodNotAllowedError")
        assert response.headers["allow"] == "POST, OPTIONS"
    for path in GETS:
        check_error(server.http.delete(path), 405, "MethodNotAllowedError")
        head, whole = server.http.head(path), server.http.get(path)
        assert head.status_code == 200 and head.content == b""
        assert head.headers.get("content-type") == whole.headers.get("content-type")
    for path in POSTS + GETS:
        response = server.http.options(path)
        assert response.status_code == 204 and "OPTIONS" in response.headers["allow"]
        assert not any(name.startswith("access-control-") for name in response.headers)


NOWHERE = ["/", "/v1", "/v2/models", "/v1/embeddings", "/v1/chat", "/health/", "/%2e%2e/x", "//"]


@pytest.mark.parametrize("path", NOWHERE)
def test_unknown_paths(server, path):
    check_error(server.http.get(server.url + path), 404, "NotFoundError")
    check_error(server.http.post(server.url + path, json={}), 404, "NotFoundError")


def test_content_type(server):
    body = json.dumps({"prompt": "Hi!"}).encode()
    for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        response = server.http.post("/tokenize", content=body, headers={"Content-Type": kind})
        assert response.status_code == 200
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        response = server.http.post("/tokenize", content=body, headers={"Content-Type": kind})
        assert response.status_code == 415


def test_request_id(server):
    assert server.http.get("/health", headers={"X-Request-Id": "mine"}).headers["x-request-id"] == "mine"
    first, second = (server.http.get("/health").headers["x-request-id"] for _ in range(2))
    assert first and second and first != second


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/tokenize", "/detokenize"])
def test_unknown_model(server, path):
    body = {"prompt": "Hi!", "messages": SUM.messages, "tokens": [1], "model": "gpt-4"}
    assert "gpt-4" in check_error(server.post(path, body), 404, "NotFoundError", "model")


OVERFLOW = re.compile(
    r"This model's maximum context length is 4096 tokens\. However, you requested (\d+) tokens "
    r"\((\d+) in the messages, (\d+) in the completion\)\. "
    r"Please reduce the length of the messages or completion\."
)


def check_overflow(response):
    message = check_error(response, 400, "BadRequestError", None, "context_length_exceeded")
    match = OVERFLOW.fullmatch(message)
    assert match, message
    total, prompt, completion = map(int, match.groups())
    assert total == prompt + completion > 4096
    return prompt, completion


def test_context_overflow(server):
    ids = [5] * 4096
    assert check_overflow(server.post(COMPLETIONS, {"prompt": ids})) == (4096, 16)
    assert check_overflow(server.post(COMPLETIONS, {"prompt": [5], "max_tokens": 4096})) == (1, 4096)
    assert check_overflow(server.post(COMPLETIONS, {"prompt": [5], "max_tokens": 2**31 - 1}))
    assert check_overflow(server.post(COMPLETIONS, {"prompt": "word " * 200_000}))
    for length in (5_000, 5_000_000):
        messages = [{"role": "user", "content": "word " * length}]
        assert check_overflow(server.post(CHAT, {"messages": messages}))
        assert check_overflow(server.post(CHAT, {"messages": messages, "stream": True}))
    messages = [{"role": "user", "content": "x"}] * 5_000
    assert check_overflow(server.post(CHAT, {"messages": messages}))
    assert check_overflow(server.post(CHAT, {"messages": SUM.messages, "max_tokens": 4090}))


def test_the_context_to_its_last_token(server):
    answer = server.answer(COMPLETIONS, {"prompt": [5] * 4095, "max_tokens": 1, "ignore_eos": True})
    assert answer["usage"]["total_tokens"] == 4096
    prompt = SUM.prompt_ids
    body = {"messages": SUM.messages, "temperature": 0, "max_tokens": 4096 - len(prompt)}
    assert server.answer(CHAT, body)["choices"][0]["message"]["content"] == SUM.content


def test_truncated_prompt(server):
    body = {"prompt": [1, 2, 3, 4, 5], "truncate_prompt_tokens": 2, "return_token_ids": True}
    assert server.answer(COMPLETIONS, body)["choices"][0]["prompt_token_ids"] == [4, 5]
    body["truncation_side"] = "right"
    assert server.answer(COMPLETIONS, body)["choices"][0]["prompt_token_ids"] == [1, 2]
    events = server.post(COMPLETIONS, {**body, "stream": True, "max_tokens": 4, "ignore_eos": True}).text.split("\n\n")
    chunks = [json.loads(event[6:])["choices"][0] for event in events if event.startswith("data: {")]
    assert len(chunks) > 1 and chunks[0]["prompt_token_ids"] == [1, 2]
    assert not any("prompt_token_ids" in chunk for chunk in chunks[1:])
    body = {"prompt": [5] * 6000, "truncate_prompt_tokens": -1, "max_tokens": 6}
    assert server.answer(COMPLETIONS, body)["usage"]["prompt_tokens"] == 4090


@pytest.mark.parametrize("golden", ALL_GOLDENS, ids=by_name)
def test_tokenize(server, golden):
    body = {"prompt": golden.prompt, "return_token_strs": True}
    answer = server.answer("/tokenize", body)
    assert answer["tokens"] == golden.prompt_ids and answer["count"] == len(golden.prompt_ids)
    assert answer["max_model_len"] == 4096 and "".join(answer["token_strs"]) == golden.prompt
    assert server.answer("/detokenize", {"tokens": golden.prompt_ids})["prompt"] == golden.prompt


@pytest.mark.parametrize("golden", CHATS, ids=by_name)
def test_tokenize_messages(server, golden):
    assert server.answer("/tokenize", {"messages": golden.messages})["tokens"] == golden.prompt_ids
    rendered = server.answer(f"{CHAT}/render", {"messages": golden.messages})
    assert rendered["prompt"] == golden.prompt and rendered["token_ids"] == golden.prompt_ids
    body = {"messages": golden.messages, "add_generation_prompt": False}
    assert server.answer("/tokenize", body)["tokens"] == golden.prompt_ids[:-2]


def test_tokenize_with_tools(server):
    golden = next(golden for golden in ALL_GOLDENS if golden.name == "tools")
    question, tools, calls, results, _ = TOOL_CASES["one call"]
    called = [{"type": "function", "function": {"name": name, "arguments": json.dumps(value)}} for name, value in calls]
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": None, "reasoning_content": "Call play_music.", "tool_calls": called},
        {"role": "tool", "content": results[0]},
    ]
    assert server.answer("/tokenize", {"messages": messages, "tools": tools})["tokens"] == golden.prompt_ids


TEXTS = [
    "", " ", "a", "\n\n  \t", "naïve café", "日本語のテキスト", "👩‍👩‍👧‍👦🏳️‍🌈", "\u0000\u001f\u007f", "\u2028\ufeff",
    "e\u0301", "𝔘𝔫𝔦", "a" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text[:12]))
def test_tokens_and_back(server, text):
    ids = server.answer("/tokenize", {"prompt": text})["tokens"]
    assert server.answer("/detokenize", {"tokens": ids})["prompt"] == text
    assert server.answer("/tokenize", {"content": text, "with_pieces": False})["tokens"] == ids


def test_pieces_of_characters(server):
    pieces = server.answer("/tokenize", {"content": "日👩", "with_pieces": True})["tokens"]
    text = b"".join(
        piece["piece"].encode() if isinstance(piece["piece"], str) else bytes(piece["piece"]) for piece in pieces
    )
    assert text.decode() == "日👩"


def test_bad_tokens(server):
    for tokens in ([-1], [6144], [2**70], ["1"], [1.5], [None], [True], "x", 5, {}):
        check_error(server.post("/detokenize", {"tokens": tokens}), 400, "BadRequestError", "tokens")
    check_error(server.post("/detokenize", {}), 400, "BadRequestError", "tokens")
    for prompt in (1, [], {}, True, [1, 2]):
        check_error(server.post("/tokenize", {"prompt": prompt}), 400, "BadRequestError", "prompt")


def test_stop_strings_anywhere(server):
    """Wherever a stop string begins and ends, also within tokens: the text before its first place, and no more."""
    dice = random.Random(5)
    text = SUM.text
    body = {"prompt": SUM.prompt_ids, "temperature": 0, "max_tokens": 64}
    for _ in range(40):
        start = dice.randrange(len(text) - 1)
        stop = text[start : start + dice.randint(1, 12)]
        choice = server.answer(COMPLETIONS, {**body, "stop": stop})["choices"][0]
        assert (choice["text"], choice["stop_reason"]) == (text[: text.index(stop)], stop)
        included = server.answer(COMPLETIONS, {**body, "stop": [stop], "include_stop_str_in_output": True})
        assert included["choices"][0]["text"] == text[: text.index(stop) + len(stop)]


def test_stop_tokens(server):
    body = {"prompt": SUM.prompt_ids, "temperature": 0, "max_tokens": 64, "return_token_ids": True}
    stop = SUM.ids[4]
    choice = server.answer(COMPLETIONS, {**body, "stop_token_ids": [stop]})["choices"][0]
    assert choice["stop_reason"] == stop and choice["finish_reason"] == "stop"
    assert choice["token_ids"] == SUM.ids[: SUM.ids.index(stop) + 1]
    whole = server.answer(COMPLETIONS, body)["choices"][0]
    assert whole["stop_reason"] is None and whole["finish_reason"] == "stop"


def test_min_tokens_and_ignore_eos(server):
    body = {"prompt": SUM.prompt_ids, "temperature": 0, "max_tokens": 60}
    assert server.answer(COMPLETIONS, body)["usage"]["completion_tokens"] == SUM.num_generated
    for extra in ({"ignore_eos": True}, {"min_tokens": 60}):
        answer = server.answer(COMPLETIONS, {**body, **extra})
        assert answer["usage"]["completion_tokens"] == 60
        assert answer["choices"][0]["finish_reason"] == "length"
    check_error(server.post(COMPLETIONS, {**body, "min_tokens": 61}), 400, "BadRequestError", "min_tokens")


def test_logit_bias(server):
    body = {"prompt": SUM.prompt_ids, "temperature": 0, "max_tokens": 3, "return_token_ids": True, "ignore_eos": True}
    forced = server.answer(COMPLETIONS, {**body, "logit_bias": {"77": 100}})
    assert forced["choices"][0]["token_ids"] == [77, 77, 77]
    allowed = server.answer(COMPLETIONS, {**body, "allowed_token_ids": [78]})
    assert allowed["choices"][0]["token_ids"] == [78, 78, 78]
    first = SUM.ids[0]
    banned = server.answer(COMPLETIONS, {**body, "logit_bias": {str(first): -100}})
    assert first not in banned["choices"][0]["token_ids"]


def test_tokens_as_ids(server):
    body = {
        "prompt": SUM.prompt_ids,
        "temperature": 0,
        "max_tokens": 2,
        "logprobs": 1,
        "return_tokens_as_token_ids": True,
    }
    logprobs = server.answer(COMPLETIONS, body)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [f"token_id:{token}" for token in SUM.ids[:2]]
    assert list(logprobs["top_logprobs"][0]) == [f"token_id:{SUM.ids[0]}"]


def test_prefix_cache(server):
    """A second time, all full pages but the last token's come from the cache, and the answer is the same."""
    golden = next(golden for golden in ALL_GOLDENS if golden.name == "needle")
    body = {"prompt": golden.prompt_ids, "temperature": 0, "max_tokens": 20}
    answers = [server.answer(COMPLETIONS, {**body, "cache_salt": "test_prefix_cache"}) for _ in range(2)]
    assert [answer["choices"][0]["text"] for answer in answers] == [golden.text] * 2
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert cached == [0, (len(golden.prompt_ids) - 1) // 16 * 16]
    other = server.answer(COMPLETIONS, {**body, "cache_salt": "another"})
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_special_tokens_in_the_answer(server):
    body = {"prompt": SUM.prompt_ids, "temperature": 0, "max_tokens": 1, "allowed_token_ids": [6114]}
    assert server.answer(COMPLETIONS, body)["choices"][0]["text"] == ""
    assert ADDED_TOKENS["<|system|>"] == 6114
    kept = server.answer(COMPLETIONS, {**body, "skip_special_tokens": False})
    assert kept["choices"][0]["text"] == "<|system|>"


def test_too_much_at_once(server):
    """What would overrun the queue is refused whole, and nothing of it stays."""
    for body in ({"prompt": ["x"] * 1024, "n": 64}, {"prompt": [[5] * 4000] * 1024, "n": 16}):
        response = server.post(COMPLETIONS, body)
        assert response.status_code in (400, 503)
        if response.status_code == 503:
            assert int(response.headers["retry-after"]) > 0
    check_error(server.post(COMPLETIONS, {"prompt": ["x"] * 1025}), 400, "BadRequestError", "prompt")
    wait_until(server.is_idle)


def test_all_prompts_of_one_request(server):
    body = {"prompt": [[5, 6, 7]] * 1024, "max_tokens": 2, "temperature": 0, "ignore_eos": True}
    choices = server.answer(COMPLETIONS, body)["choices"]
    assert [choice["index"] for choice in choices] == list(range(1024))
    assert len({choice["text"] for choice in choices}) == 1


def test_echo(server):
    body = {"prompt": SUM.prompt, "echo": True, "max_tokens": 0, "logprobs": 2}
    answer = server.answer(COMPLETIONS, body)
    assert answer["choices"][0]["text"] == SUM.prompt and answer["usage"]["completion_tokens"] == 0
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == len(SUM.prompt_ids)
    for streamed in ({**body, "max_tokens": 3, "stream": True}, {**body, "stream": True}):
        events = server.post(COMPLETIONS, streamed).text.split("\n\n")
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        assert events[-2:] == ["data: [DONE]", ""]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks).startswith(SUM.prompt)


def test_prompt_logprobs(server):
    body = {"prompt": SUM.prompt_ids, "max_tokens": 1, "prompt_logprobs": 2}
    entries = server.answer(COMPLETIONS, body)["choices"][0]["prompt_logprobs"]
    assert entries[0] is None and len(entries) == len(SUM.prompt_ids)
    for token, entry in zip(SUM.prompt_ids[1:], entries[1:]):
        assert str(token) in entry and 2 <= len(entry) <= 3
    chat = server.answer(CHAT, {"messages": SUM.messages, "max_tokens": 1, "prompt_logprobs": 2})
    assert len(chat["prompt_logprobs"]) == len(SUM.prompt_ids)


def test_characters_are_never_split(server):
    """The model writes bytes of characters one by one; each event has whole ones."""
    ids = server.answer("/tokenize", {"prompt": "👩"})["tokens"]
    assert len(ids) > 1
    body = {"prompt": "x", "temperature": 1, "seed": 1, "max_tokens": 200, "stream": True, "ignore_eos": True}
    body |= {"allowed_token_ids": ids, "return_token_ids": True}
    text, tokens = "", []
    for line in server.post(COMPLETIONS, body).text.splitlines():
        if line.startswith("data: {"):
            choice = json.loads(line[6:])["choices"][0]
            text += choice["text"]
            tokens += choice["token_ids"]
    assert len(tokens) == 200
    assert text == server.answer("/detokenize", {"tokens": tokens})["prompt"]
