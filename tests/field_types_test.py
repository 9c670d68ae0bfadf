"""Every field of a generation request: wrong types and values are refused by name, null means unset."""

import pytest

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
BASE = {
    CHAT: {"messages": [{"role": "user", "content": "Hi!"}], "max_tokens": 1},
    COMPLETIONS: {"prompt": "Hi!", "max_tokens": 1},
}

# JSON types by name, each with a value that no field takes as something else.
SAMPLES = {"string": "x", "boolean": True, "array": [[]], "object": {"x": 1}, "number": 0.5}
HUGE = [2**31, 2**63, 2**64, 10**30, -(2**63), -(10**30)]
NUMBER_TRAPS = [1e300, -1e300]


def field(name, *types, bad=(), needs=None):
    return name, types, list(bad), needs or {}


def integer(name, minimum, maximum=None, needs=None):
    bad = [minimum - 1, *(value for value in HUGE if value < minimum or maximum is not None)]
    return field(name, "integer", bad=bad + ([] if maximum is None else [maximum + 1]) + NUMBER_TRAPS, needs=needs)


def number(name, *bad):
    return field(name, "number", bad=[*bad, *NUMBER_TRAPS])


def flag(name):
    return field(name, "boolean")


INT32 = 2**31 - 1
COMMON = [
    field("model", "string"),
    number("temperature", -0.1),
    number("top_p", -0.1, 0, 1.1),
    number("min_p", -0.1, 1.1),
    number("repetition_penalty", 0, -1),
    number("presence_penalty", -2.1, 2.1),
    number("frequency_penalty", -2.1, 2.1),
    integer("top_k", -1, INT32),
    integer("max_tokens", 1, INT32),
    integer("min_tokens", 0, INT32),
    field("seed", "integer", bad=[2**63, 2**64, 10**30, -(2**63) - 1, *NUMBER_TRAPS]),
    field("n", "integer", bad=[0, -1, 16385, *HUGE, *NUMBER_TRAPS]),
    field("stop", "string", bad=[[1], [None], ["a"] * 5, "", [""], "x" * 100_000]),
    field("stop_token_ids", "array", bad=[["x"], [-1], [6144], [2**40], [0.5], [True], list(range(3000))]),
    field("allowed_token_ids", "array", bad=[[], ["x"], [-1], [6144], [2**40], [0.5]]),
    field("logit_bias", "object", bad=[{"x": 1}, {"6144": 1}, {"-1": 1}, {"5": "x"}, {"5": None}, {"1e3": 1}]),
    flag("stream"),
    flag("include_stop_str_in_output"),
    flag("ignore_eos"),
    flag("skip_special_tokens"),
    flag("spaces_between_special_tokens"),
    flag("return_token_ids"),
    flag("return_tokens_as_token_ids"),
    flag("add_special_tokens"),
    field("stream_options", "object", bad=[{}, {"include_usage": True}]),
    field("stream_options", "object", bad=[{"include_usage": 1}], needs={"stream": True}),
    integer("truncate_prompt_tokens", -1, INT32),
    field("truncation_side", "string", bad=["middle"]),
    field("prompt_logprobs", "integer", bad=[21, 2**31, 10**30, 1e300]),
    field("cache_salt", "string", bad=["", "a@b", "a/b", "a\\b", "a\0b", "x" * 129]),
    field("user", "string"),
    field("request_id", "string"),
    field("priority", "integer", bad=[1]),
    field("response_format", "object", bad=[{}, {"type": "xml"}, {"type": 1}]),
    field("bad_words", "array", bad=[["x"]]),
    flag("use_beam_search"),
]
CHAT_ONLY = [
    field("messages", "array", bad=[None, [], ["x"], [1], [{}], [{"role": "user", "content": 1}]]),
    integer("max_completion_tokens", 1, INT32),
    flag("logprobs"),
    integer("top_logprobs", 0, 20, needs={"logprobs": True}),
    field("top_logprobs", "integer", bad=[1]),
    field("tools", "array", bad=[[], ["x"], [{}], [{"type": "x", "function": {"name": "f"}}]]),
    field("tools", "array", bad=[[{"type": "function", "function": {}}], [{"type": "function", "function": "f"}]]),
    field("tool_choice", "string", "object", bad=["some", "auto", "required", {}, {"function": {"name": "f"}}]),
    flag("parallel_tool_calls"),
    flag("include_reasoning"),
    field("reasoning_effort", "string", bad=["enormous"]),
    field("chat_template_kwargs", "object", bad=[{"messages": []}, {"tools": []}, {"add_generation_prompt": False}]),
    field("documents", "array"),
    flag("add_generation_prompt"),
    flag("continue_final_message"),
    flag("echo"),
]
COMPLETIONS_ONLY = [
    field("prompt", "string", bad=[None, [], "", [""], [[]], [-1], [6144], [2**40], [0.5], [True], ["a", 1], [[1], 1]]),
    flag("echo"),
    integer("logprobs", 0, 20),
    field("suffix", "string", bad=["end"]),
    field("best_of", "integer", bad=[2, -1]),
]
CASES = [
    *((CHAT, case) for case in COMMON + CHAT_ONLY),
    *((COMPLETIONS, case) for case in COMMON + COMPLETIONS_ONLY),
]


def wrong_values(types, bad):
    values = list(bad)
    for kind, sample in SAMPLES.items():
        if kind not in types:
            values.append(sample)
    return values


def case_id(case):
    path, (name, _, _, needs) = case
    return f"{'chat' if path == CHAT else 'text'}-{name}" + "".join(f"-{need}" for need in needs)


def check_refusal(response, name, in_message=True):
    assert response.status_code == 400, response.text
    assert len(response.content) <= 4096
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "BadRequestError" and error["code"] == 400
    assert (error["param"] or "").replace("[", ".").split(".")[0] == name, error
    assert name in error["message"] or not in_message, error


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_wrong_values(server, case):
    path, (name, types, bad, needs) = case
    for value in wrong_values(types, bad):
        check_refusal(server.post(path, {**BASE[path], **needs, name: value}), name)


@pytest.mark.parametrize("path", BASE)
def test_null_is_unset(server, path):
    names = {case[0] for where, case in CASES if where == path} - set(BASE[path])
    body = {**BASE[path], **dict.fromkeys(sorted(names))}
    assert server.answer(path, body)["choices"][0]["finish_reason"] == "length"
    assert server.answer(path, {**body, "max_tokens": None, "stop": "e"})["choices"]


@pytest.mark.parametrize("path", BASE)
def test_unknown_fields_are_ignored(server, path):
    strange = {"kv_transfer_params": {"a": 1}, "vllm_xargs": {}, "x" * 1000: [1, {"y": None}], "": 0}
    assert server.answer(path, {**BASE[path], **strange})["choices"]


EXTREMES = {
    "temperature": [0, 1e-9, 1e6],
    "top_p": [1e-9, 1],
    "min_p": [0, 1],
    "top_k": [-1, 0, 1, 2**31 - 1],
    "repetition_penalty": [0.01, 100],
    "presence_penalty": [-2, 2],
    "frequency_penalty": [-2, 2],
    "seed": [-(2**63), 2**63 - 1, 0],
    "n": [1, 64],
    "min_tokens": [0, 3],
    "logit_bias": [{}, {str(token): -100 for token in range(6144)}, {"0": 1e30, "1": -1e30}],
    "stop": ["x" * 1000, ["\n", "\0", "👩", " "], []],
    "stop_token_ids": [[], list(range(1000)), [5, 5, 5]],
    "allowed_token_ids": [[0], list(range(1000))],
    "prompt_logprobs": [0, 20],
    "cache_salt": ["x", "👩" * 128],
    "truncate_prompt_tokens": [-1, 1, 2**31 - 1],
    "model": [""],
    "user": ["x" * 100_000],
}


@pytest.mark.parametrize("path", BASE)
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_but_good_values(server, path, name):
    for value in EXTREMES[name]:
        for stream in (False, True) if name != "prompt_logprobs" else (False,):
            body = {**BASE[path], "max_tokens": 3, "temperature": 1, name: value, "stream": stream}
            response = server.post(path, body)
            assert response.status_code == 200, response.text
            assert '"error"' not in response.text


CONSTRAINTS = {
    "structured_outputs": {"json": {"type": "object"}},
    "guided_json": {"type": "object"},
    "guided_regex": "a+",
    "guided_choice": ["a", "b"],
    "guided_grammar": "root ::= x",
}
FORMATS = [
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    {"type": "json_schema"},
    {"type": "structural_tag", "structures": [], "triggers": []},
]


@pytest.mark.parametrize("path", BASE)
def test_constraints_are_refused(server, path):
    """Never ignored: the answer would not be what was asked for."""
    for name, value in CONSTRAINTS.items():
        check_refusal(server.post(path, {**BASE[path], name: value}), name)
    for value in FORMATS:
        check_refusal(server.post(path, {**BASE[path], "response_format": value}), "response_format")
    assert server.answer(path, {**BASE[path], "response_format": {"type": "text"}})["choices"]


def test_forced_tool_calls_are_refused(server):
    body = {**BASE[CHAT], "tools": [{"type": "function", "function": {"name": "f"}}]}
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        check_refusal(server.post(CHAT, {**body, "tool_choice": choice}), "tool_choice")
    for choice in ("auto", "none"):
        assert server.answer(CHAT, {**body, "tool_choice": choice})["choices"]


MESSAGES = [
    {"role": "stranger", "content": "x"},
    {"role": 1, "content": "x"},
    {"content": "x"},
    {"role": "user", "content": {"text": "x"}},
    {"role": "user", "content": [1]},
    {"role": "user", "content": [{"type": "text"}]},
    {"role": "user", "content": [{"type": "text", "text": 1}]},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]},
    {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
    {"role": "assistant", "content": "x", "reasoning": 1},
    {"role": "assistant", "content": "x", "reasoning_content": []},
    {"role": "assistant", "tool_calls": "x"},
    {"role": "assistant", "tool_calls": ["x"]},
    {"role": "assistant", "tool_calls": [{"type": "function"}]},
    {"role": "assistant", "tool_calls": [{"function": {"name": 1, "arguments": "{}"}}]},
    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]},
    {"role": "tool", "content": "x", "tool_call_id": 1},
    None,
    "x",
    [],
]


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
def test_bad_messages(server, message):
    messages = [{"role": "user", "content": "Hi!"}, message]
    response = server.post(CHAT, {"messages": messages, "max_tokens": 1})
    check_refusal(response, "messages", in_message=False)
    assert response.json()["error"]["param"].startswith("messages[1]")


def test_odd_but_good_messages(server):
    conversations = [
        [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi!"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": ["Hi", {"type": "text", "text": "!"}]}],
        [{"role": "user", "content": "Hi!", "name": "Ann"}, {"role": "assistant", "content": "Hello."}],
        [
            {"role": "user", "content": "Play"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": ""}}], "content": None},
            {"role": "tool", "content": [{"type": "text", "text": "ok"}]},
        ],
        [{"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1]}}}]}],
        [{"role": "user", "content": "nul \0, surrogate pair \U0001f600, line\u2028separator"}],
    ]
    for messages in conversations:
        assert server.answer(CHAT, {"messages": messages, "max_tokens": 1})["choices"]
