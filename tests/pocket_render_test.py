"""3,100 conversations of the pocket model's generator, rendered by its chat template in the server: as gen.py has them."""

import json
import sys

import pytest

from server_process import POCKET

sys.path.insert(0, str(POCKET / "tools"))
import gen  # noqa: E402

CONVERSATIONS = 100  # of each family


def on_the_wire(message):
    """As an OpenAI client sends it: arguments of calls are JSON text."""
    if "tool_calls" not in message:
        return message
    calls = [
        {"id": f"call-{i}", "type": "function", "function": {**f, "arguments": json.dumps(f["arguments"])}}
        for i, f in enumerate(call["function"] for call in message["tool_calls"])
    ]
    return {**message, "tool_calls": calls}


def rendered(server, sample, messages, **options):
    body = {"messages": [on_the_wire(m) for m in messages], "max_tokens": 1, **options}
    if sample["tools"]:
        body["tools"] = sample["tools"]
    return server.answer("/v1/chat/completions/render", body)["prompt"]


@pytest.mark.parametrize("family", gen.FAMILIES)
def test_conversations(server, family):
    for i in range(CONVERSATIONS):
        s = gen.make(family, i, 5, "train")
        whole = rendered(server, s, s["messages"], add_generation_prompt=False)
        assert whole == gen.render(s).removesuffix("<|user|>")
        think = i % 2 == 0
        for turn in s["train"]:
            asked = rendered(server, s, s["messages"][:turn], chat_template_kwargs={"enable_thinking": think})
            assert asked == gen.prompt(s, turn, think)
