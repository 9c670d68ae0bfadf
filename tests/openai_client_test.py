"""The OpenAI package as the model card uses it: OpenAI(base_url=..., api_key="none"), chat.completions.create."""

import json

import openai
import pytest

from pocket_cases import ALL_GOLDENS, CHATS, SUM, TOOL_CASES, by_name
from server_process import wait_until


def ask(client, model, messages, **options):
    return client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=3000, **options)


class Collected:
    """A streamed chat, put together again."""

    def __init__(self, stream):
        self.content, self.reasoning, self.reasoning_content = "", "", ""
        self.calls, self.usage, self.finish_reason, self.chunks = {}, None, None, list(stream)
        for chunk in self.chunks:
            if chunk.usage:
                self.usage = chunk.usage
            for choice in chunk.choices:
                assert self.finish_reason is None, "a chunk after the last"
                self.finish_reason = choice.finish_reason
                self._add(choice.delta)

    def _add(self, delta):
        self.content += delta.content or ""
        self.reasoning += getattr(delta, "reasoning", None) or ""
        self.reasoning_content += getattr(delta, "reasoning_content", None) or ""
        for call in delta.tool_calls or []:
            if call.index not in self.calls:
                assert call.id and call.type == "function" and call.function.name
                self.calls[call.index] = [call.function.name, ""]
            self.calls[call.index][1] += call.function.arguments or ""

    def parsed_calls(self):
        return [(name, json.loads(arguments)) for _, (name, arguments) in sorted(self.calls.items())]


def test_models(client, model):
    card = client.models.retrieve(model)
    assert card.id == model and card.object == "model"
    assert card.max_model_len == 4096
    assert [m.id for m in client.models.list()] == [model]


@pytest.mark.parametrize("golden", CHATS, ids=by_name)
def test_chat(client, model, golden):
    answer = ask(client, model, golden.messages)
    choice = answer.choices[0]
    assert choice.message.content == golden.content
    assert choice.message.reasoning == choice.message.reasoning_content == golden.reasoning
    assert choice.message.role == "assistant" and not choice.message.tool_calls
    assert choice.finish_reason == "stop" and choice.index == 0
    assert answer.object == "chat.completion" and answer.model == model and answer.id.startswith("chatcmpl-")
    assert answer.usage.prompt_tokens == len(golden.prompt_ids)
    assert answer.usage.completion_tokens == golden.num_generated
    assert answer.usage.total_tokens == len(golden.prompt_ids) + golden.num_generated


@pytest.mark.parametrize("golden", CHATS, ids=by_name)
def test_streamed_chat(client, model, golden):
    answer = Collected(ask(client, model, golden.messages, stream=True))
    assert answer.content == golden.content
    assert answer.reasoning == answer.reasoning_content == golden.reasoning
    assert answer.finish_reason == "stop" and answer.usage is None
    first = answer.chunks[0]
    assert first.object == "chat.completion.chunk" and first.choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in answer.chunks}) == 1
    assert len(answer.chunks) > golden.num_generated // 2, "tokens must not be held back"


def test_streamed_usage(client, model):
    answer = Collected(ask(client, model, SUM.messages, stream=True, stream_options={"include_usage": True}))
    assert answer.chunks[-1].choices == [] and all(chunk.choices for chunk in answer.chunks[:-1])
    assert answer.usage.prompt_tokens == len(SUM.prompt_ids)
    assert answer.usage.completion_tokens == SUM.num_generated
    details = answer.usage.completion_tokens_details
    assert 0 < details.reasoning_tokens < SUM.num_generated
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_running_usage(client, model):
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = Collected(ask(client, model, SUM.messages, stream=True, stream_options=options))
    counts = [chunk.usage.completion_tokens for chunk in answer.chunks]
    assert counts == sorted(counts) and counts[0] >= 1 and counts[-1] == SUM.num_generated


def test_conversation(client, model):
    """The golden of several turns; thoughts come back under either name and are not shown to the model again."""
    messages = [
        {"role": "user", "content": "Hi! For lunch I had a cookie."},
        {"role": "assistant", "content": "Sounds good.", "reasoning": "They greet."},
        {"role": "user", "content": [{"type": "text", "text": "I am a nurse."}]},
        {"role": "assistant", "content": "That is interesting work.", "reasoning_content": "A job."},
        {"role": "user", "content": "What is my job?"},
    ]
    golden = next(golden for golden in ALL_GOLDENS if golden.name == "memory")
    answer = ask(client, model, messages)
    assert answer.choices[0].message.content == golden.content
    assert answer.usage.prompt_tokens == len(golden.prompt_ids)


@pytest.mark.parametrize("name", TOOL_CASES)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_tools(client, model, name, streamed):
    question, tools, calls, results, final = TOOL_CASES[name]
    messages = [{"role": "user", "content": question}]
    if streamed:
        answer = Collected(ask(client, model, messages, tools=tools, stream=True))
        assert answer.parsed_calls() == calls
        assert answer.finish_reason == "tool_calls" and answer.content == ""
        made = [
            {"id": f"call_{index}", "type": "function", "function": {"name": call[0], "arguments": call[1]}}
            for index, call in sorted(answer.calls.items())
        ]
        messages.append({"role": "assistant", "content": None, "tool_calls": made, "reasoning": answer.reasoning})
    else:
        choice = ask(client, model, messages, tools=tools).choices[0]
        made = choice.message.tool_calls
        assert [(call.function.name, json.loads(call.function.arguments)) for call in made] == calls
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        assert len({call.id for call in made}) == len(calls) and all(call.type == "function" for call in made)
        messages.append(choice.message)
    for call, result in zip(made, results):
        call_id = call["id"] if streamed else call.id
        messages.append({"role": "tool", "tool_call_id": call_id, "content": result})
    message = ask(client, model, messages, tools=tools).choices[0].message
    assert message.content == final and not message.tool_calls


def test_tool_choice(client, model):
    question, tools, calls, _, _ = TOOL_CASES["two calls"]
    messages = [{"role": "user", "content": question}]
    none = ask(client, model, messages, tools=tools, tool_choice="none").choices[0]
    assert not none.message.tool_calls and none.finish_reason == "stop"
    automatic = ask(client, model, messages, tools=tools, tool_choice="auto").choices[0]
    assert len(automatic.message.tool_calls) == len(calls)
    one = ask(client, model, messages, tools=tools, parallel_tool_calls=False).choices[0]
    assert len(one.message.tool_calls) == 1 and one.finish_reason == "tool_calls"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_logprobs(client, model, streamed):
    options = {"logprobs": True, "top_logprobs": 3, "stream": streamed}
    answer = ask(client, model, SUM.messages, **options)
    entries = []
    if streamed:
        for chunk in answer:
            entries += [entry for choice in chunk.choices if choice.logprobs for entry in choice.logprobs.content]
    else:
        entries = answer.choices[0].logprobs.content
    text = SUM.text + "<|user|>"  # the stop token has an entry, as in vLLM
    assert len(entries) == SUM.num_generated and "".join(entry.token for entry in entries) == text
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == text
    for entry in entries:
        values = [top.logprob for top in entry.top_logprobs]
        assert len(values) == 3 and values == sorted(values, reverse=True) and values[0] <= 0
        assert entry.logprob == values[0] and entry.token == entry.top_logprobs[0].token
    golden = [logprob for _, logprob in SUM.top[:3]]
    assert [top.logprob for top in entries[0].top_logprobs] == pytest.approx(golden, abs=0.25)


def test_n(client, model):
    answer = ask(client, model, SUM.messages, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {SUM.content}
    assert answer.usage.completion_tokens == 3 * SUM.num_generated
    contents = ["", "", ""]
    for chunk in ask(client, model, SUM.messages, n=3, stream=True):
        contents[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert contents == [SUM.content] * 3


def test_seed(client, model):
    def draw(seed):
        answer = client.completions.create(
            model=model, prompt="Once upon a time", temperature=1.5, max_tokens=24, n=4, seed=seed
        )
        return [choice.text for choice in answer.choices]

    assert draw(7) == draw(7)
    assert len(set(draw(7) + draw(100))) == 8, "every choice has a seed of its own"


def test_stop(client, model):
    answer = ask(client, model, SUM.messages, stop=[" carry", "never"])
    choice = answer.choices[0]
    assert choice.finish_reason == "stop" and choice.stop_reason == " carry"
    assert choice.message.reasoning == SUM.reasoning.partition(" carry")[0] and not choice.message.content
    assert answer.usage.completion_tokens < SUM.num_generated


def test_length(client, model):
    choice = client.chat.completions.create(model=model, messages=SUM.messages, max_completion_tokens=5).choices[0]
    assert choice.finish_reason == "length"
    assert SUM.reasoning.startswith(choice.message.reasoning) and choice.message.content is None


def test_no_thinking(client, model):
    def message(**extra):
        return ask(client, model, SUM.messages, **extra).choices[0].message

    for kwargs in (
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
        {"reasoning_effort": "none"},
    ):
        direct = message(**kwargs)
        assert direct.content and direct.reasoning is None
    hidden = message(extra_body={"include_reasoning": False})
    assert hidden.content == SUM.content
    assert getattr(hidden, "reasoning", None) is None and getattr(hidden, "reasoning_content", None) is None


@pytest.mark.parametrize("golden", ALL_GOLDENS, ids=by_name)
def test_completion_of_tokens(client, model, golden):
    answer = client.completions.create(
        model=model,
        prompt=golden.prompt_ids,
        temperature=0,
        max_tokens=golden.num_generated,
        extra_body={"return_token_ids": True},
    )
    choice = answer.choices[0]
    assert choice.token_ids == golden.generated_ids and choice.prompt_token_ids == golden.prompt_ids
    assert choice.text == golden.text
    assert choice.finish_reason == ("stop" if golden.complete else "length")
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.usage.completion_tokens == golden.num_generated


@pytest.mark.parametrize("golden", ALL_GOLDENS, ids=by_name)
def test_streamed_completion_of_text(client, model, golden):
    stream = client.completions.create(
        model=model,
        prompt=golden.prompt,
        temperature=0,
        max_tokens=golden.num_generated,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == golden.text
    assert chunks[-1].usage.prompt_tokens == len(golden.prompt_ids)


def test_completion_of_several_prompts(client, model):
    first, second = CHATS[0], CHATS[1]
    limit = max(first.num_generated, second.num_generated)
    for prompts in ([first.prompt, second.prompt], [first.prompt_ids, second.prompt_ids]):
        answer = client.completions.create(model=model, prompt=prompts, temperature=0, max_tokens=limit)
        assert [choice.text for choice in answer.choices] == [first.text, second.text]
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert answer.usage.prompt_tokens == len(first.prompt_ids) + len(second.prompt_ids)


def test_default_of_completions_is_16_tokens(client, model):
    answer = client.completions.create(model=model, prompt=SUM.prompt, temperature=0)
    assert answer.usage.completion_tokens == 16 and answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("golden", ALL_GOLDENS, ids=by_name)
def test_prompt_logprobs(client, model, golden):
    """What lm-evaluation-harness asks for."""
    answer = client.completions.create(
        model=model, prompt=[golden.prompt_ids], max_tokens=1, logprobs=1, echo=True, temperature=0, seed=1
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    values = logprobs.token_logprobs[1 : len(golden.prompt_ids)]
    assert [-value for value in values] == pytest.approx(golden.nll, abs=0.2, rel=0.05)
    joined = "".join(logprobs.tokens)
    assert joined.startswith(golden.prompt) and answer.choices[0].text.startswith(golden.prompt)
    offsets = [len("".join(logprobs.tokens[:i])) for i in range(len(logprobs.tokens))]
    assert logprobs.text_offset == offsets
    assert len(logprobs.tokens) == len(golden.prompt_ids) + 1


def test_errors_are_the_clients_own(client, model):
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(client, "gpt-4", SUM.messages)
    assert unknown.value.body["param"] == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=model, messages=SUM.messages, temperature=-1)
    assert bad.value.body["param"] == "temperature" and bad.value.body["code"] == 400
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, model, [{"role": "user", "content": "word " * 5000}])
    assert long.value.code == "context_length_exceeded"


def test_hanging_up(client, model, server):
    stream = client.completions.create(
        model=model, prompt="Once", max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    wait_until(server.is_idle)
