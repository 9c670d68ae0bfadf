#!/usr/bin/env python3
"""Writes conversations of the pocket model's training data with the text they were trained as, as JSON lines.

  pocket_conversations.py COUNT

Each line has what a client would send (messages, tools, kwargs, add_generation_prompt) and `rendered`.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "models" / "pocket" / "tools"))
import gen  # noqa: E402


def conversation(i):
    families = list(gen.FAMILIES)
    sample = gen.make(families[i % len(families)], i, 11, "train")
    line = {"messages": sample["messages"], "tools": sample["tools"] or None, "kwargs": None}
    if i % 3 == 0:  # whole, without the token that ends the last turn
        return line | {"add_generation_prompt": False, "rendered": gen.render(sample).removesuffix("<|user|>")}
    think = i % 3 == 1
    turn = sample["train"][-1]
    line["messages"] = sample["messages"][:turn]
    line["kwargs"] = None if think else {"enable_thinking": False}
    return line | {"add_generation_prompt": True, "rendered": gen.prompt(sample, turn, think)}


for number in range(int(sys.argv[1])):
    print(json.dumps(conversation(number), ensure_ascii=False))
