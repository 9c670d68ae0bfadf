"""A sample in GLM-4.7's chat format: the text, what of it is trained, prompts, and scoring of replies."""

import json

TOOLS_HEAD = (
    "\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
TOOLS_TAIL = (
    "</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n"
    "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value>"
    "<arg_key>{arg-key-2}</arg_key><arg_value>{arg-value-2}</arg_value>...</tool_call>"
)


def body(m):
    """What an assistant message holds after its thinking."""

    def value(v):
        return v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)

    calls = (c["function"] for c in m.get("tool_calls", ()))
    return m["content"] + "".join(
        f"<tool_call>{c['name']}"
        + "".join(f"<arg_key>{k}</arg_key><arg_value>{value(v)}</arg_value>" for k, v in c["arguments"].items())
        + "</tool_call>"
        for c in calls
    )


def segments(s):
    """The sample in GLM-4.7's chat format, as (text, trained?, message) pieces; what ends a turn is trained too.

    Thinking of assistant turns before the last user turn is left out, as the chat template does. An assistant turn
    is closed by the token that opens the next role, which is what the model must emit to stop.
    """
    out = [("[gMASK]<sop>", False, -1)]
    if s["tools"]:
        listed = "".join(json.dumps(t, ensure_ascii=False) + "\n" for t in s["tools"])
        out.append(("<|system|>" + TOOLS_HEAD + listed + TOOLS_TAIL, False, -1))
    msgs = s["messages"]
    last_user = max(i for i, m in enumerate(msgs) if m["role"] == "user")
    for i, m in enumerate(msgs):
        stops = i - 1 in s["train"]
        if m["role"] in ("user", "system"):
            out += [(f"<|{m['role']}|>", stops, i), (m["content"], False, i)]
        elif m["role"] == "tool":
            if msgs[i - 1]["role"] != "tool":
                out.append(("<|observation|>", stops, i))
            out.append((f"<tool_response>{m['content']}</tool_response>", False, i))
        elif m.get("reasoning_content") and i > last_user:
            out += [
                ("<|assistant|><think>", False, i),
                (f"{m['reasoning_content']}</think>{body(m)}", i in s["train"], i),
            ]
        else:
            out += [("<|assistant|></think>", False, i), (body(m), i in s["train"], i)]
    out.append(("<|user|>", True, len(msgs)))
    return out


def render(s):
    return "".join(t for t, _, _ in segments(s))


def prompt(s, turn=-1, think=True):
    """What the model gets for one assistant turn of a sample; the last one when none is named."""
    turn %= len(s["messages"])
    return "".join(t for t, _, i in segments(s) if i < turn) + "<|assistant|>" + ("<think>" if think else "</think>")


def right(s, reply, turn=-1):
    """Whether a reply (everything the model wrote before its stop token) is the expected one."""
    text, want = reply.split("</think>")[-1].strip(), body(s["messages"][turn])
    if s["score"] == "json":
        try:
            return json.loads(text) == json.loads(want)
        except ValueError:
            return False
    return text == want
